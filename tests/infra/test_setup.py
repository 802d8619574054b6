"""Tests of the setup: its variables, and the automation that marks silent runs as crashed."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import prefect.client.orchestration
import pytest
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Suspended

from infra.setup import (
    SetupError,
    crash_automation,
    deploy,
    make_bucket,
    watch_over_flow_runs,
)


@pytest.mark.parametrize("state", [Cancelled, Completed, Crashed, Failed, Suspended])
def test_crash_automation_expects_each_state_in_which_a_flow_run_sends_no_heartbeat(state):
    trigger = crash_automation(timedelta(seconds=600)).trigger
    assert f"prefect.flow-run.{state().name}" in trigger.expect
    assert f"prefect.flow-run.{Running().name}" not in trigger.expect
    assert trigger.within == timedelta(seconds=600)


class Client:
    """Prefect client with automations in memory."""

    def __init__(self):
        self.automations = {}

    def __call__(self, sync_client):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read_automations_by_name(self, name):
        return [
            SimpleNamespace(id=key, trigger=item.trigger)
            for key, item in self.automations.items()
            if item.name == name
        ]

    def create_automation(self, automation):
        self.automations[max(self.automations, default=0) + 1] = automation

    def delete_automation(self, key):
        del self.automations[key]


def test_watch_over_flow_runs_replaces_the_automation_of_an_earlier_release(monkeypatch):
    client = Client()
    monkeypatch.setattr(prefect.client.orchestration, "get_client", client)
    watch_over_flow_runs()
    watch_over_flow_runs()
    assert list(client.automations) == [1]
    client.automations[1].trigger.expect.discard("prefect.flow-run.Suspended")
    watch_over_flow_runs()
    (current,) = client.automations.values()
    assert "prefect.flow-run.Suspended" in current.trigger.expect


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize(
    ("name", "step"), [("LDMPROBE_STORE", make_bucket), ("LDMPROBE_POOL", deploy)]
)
def test_variable_that_is_missing_or_empty_is_one_sentence(monkeypatch, name, step, value):
    if value is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=rf"^{name}: not set\. Fix: read the file env"):
        step()
