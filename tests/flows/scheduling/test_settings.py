"""Tests of scheduled runs of the study flow: the seeds of their date, and their repetition."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Scheduled
from pydantic import ValidationError
from run_helpers import assert_same, carry_out, small_study

import flows.study
from flows.scheduling.settings import Schedule
from flows.study import study_flow
from ldmprobe_core.errors import RunError
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study

MARCH_1 = (56 * 365 + 14 + 31 + 28) * 100_000
"""First seed of 2026-03-01, which is so many days after 1970-01-01 (14 leap years)."""


@pytest.fixture(scope="module")
def study(tiny_model):
    return small_study("nightly", tiny_model, 8)


@pytest.fixture(scope="module")
def plain(study, tmp_path_factory):
    """Run of the study that 2026-03-01 has, by a plain loop."""
    content = study.model_dump(mode="json", by_alias=True)
    content["prompts"]["seed"] = MARCH_1
    return carry_out(parse_study(content), str(tmp_path_factory.mktemp("plain")))


def test_a_scheduled_run_has_the_seeds_of_its_date_and_its_retry_continues_it(
    prefect_api, study, plain, tmp_path, monkeypatch
):
    content = study.model_dump(mode="json", by_alias=True)
    parameters = {"study": content, "store": str(tmp_path / "runs"), "schedule": {}}
    # Twenty minutes before midnight in UTC; the flow run itself starts today.
    evening = Scheduled(scheduled_time=datetime(2026, 3, 1, 23, 40, tzinfo=UTC))

    def no_power(*arguments):
        raise RunError("power failure")

    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run(study_flow, parameters=parameters, state=evening)
        with monkeypatch.context() as patched:
            patched.setattr(flows.study, "summarise", no_power)
            with pytest.raises(RunError, match="power failure"):
                run_flow(study_flow, flow_run, parameters)
        run = Run(f"{tmp_path}/runs/{plain.study.run_name}")
        assert not run.location.has("summary.json")
        client.set_flow_run_state(flow_run.id, AwaitingRetry(), force=True)
        run_flow(study_flow, client.read_flow_run(flow_run.id), parameters)
        again = client.read_flow_run(flow_run.id)
    assert again.run_count == 2
    assert again.state.is_completed()
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == [plain.study.run_name]
    assert_same(run, plain)
    assert json.loads(run.location.read_text("schedule.json")) == {"scheduled_for": "2026-03-01"}
    assert json.loads(run.location.read_text("study.json"))["prompts"]["seed"] == MARCH_1


@pytest.mark.parametrize(
    "content", [{"keep": 0}, {"keep_activations": -1}, {"keep": 1.5}, {"keep": 10**9}, {"days": 3}]
)
def test_settings_without_meaning_are_refused(content):
    with pytest.raises(ValidationError):
        Schedule.model_validate(content)
