"""A scheduled flow run waits for another one that works on the run of its date."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from prefect import flow

import flows.study
from flows.run_lock import waiting_notes
from ldmprobe_core.storage import lease as leases
from ldmprobe_core.storage.lease import hold_lease
from ldmprobe_core.storage.lifecycle.lease_files import UNKNOWN, Holder
from tasks import stopping
from tasks.stopping import Stop, StoppedError

NIGHT = datetime(2026, 3, 1, 3, tzinfo=UTC)


@pytest.fixture
def lines():
    """Lines of flow runs' logs about waiting, and a list of functions to call at each of them."""

    class Listener(logging.Handler):
        def emit(self, record):
            if "waiting for" in record.getMessage():
                self.told.append(record.getMessage())
                for call in self.calls:
                    call()

    listener, logger = Listener(), logging.getLogger("prefect.flow_runs")
    listener.told, listener.calls = [], []
    logger.addHandler(listener)
    yield listener
    logger.removeHandler(listener)


@pytest.fixture
def held(study_of_march_1, tmp_path, monkeypatch):
    """URL of the run of March 1, whose lease another flow run holds, and what frees it."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(leases, "STALE_S", 600.0)  # not by a heartbeat that a busy machine delays
    url = f"{tmp_path}/{study_of_march_1.run_name}"
    with ExitStack() as stack:
        stack.enter_context(hold_lease(url, "flow run of classify"))
        yield url, stack.close


def test_a_scheduled_study_waits_for_the_classify_flow_of_its_date(
    scheduled, nightly_study, held, lines, tmp_path, monkeypatch
):
    url, free = held
    order = lines.calls
    order += [lambda: done.append("waits"), free]
    done = []
    monkeypatch.setattr(
        flows.study, "summary_if_finished", lambda run, *_: done.append(run.url) or {}
    )
    for name in ("publish", "conclude"):
        monkeypatch.setattr(flows.study, name, lambda *_: None)
    parameters = {"study": nightly_study, "store": str(tmp_path), "schedule": {}}
    finished = scheduled(NIGHT, parameters)
    assert finished.state.is_completed(), finished.state.message
    assert done == ["waits", url]
    (line,) = lines.told
    assert line.startswith(f"waiting for {url}, on which flow run of classify (process ")
    assert line.endswith(" works: 0 of at most 360 minutes")


@pytest.mark.parametrize("by_schedule", [True, False], ids=["scheduled", "by hand"])
def test_a_flow_run_that_may_not_wait_fails_and_names_the_run(
    scheduled,
    mark_as_scheduled,
    nightly_study,
    study_of_march_1,
    held,
    lines,
    tmp_path,
    by_schedule,
):
    mark_as_scheduled(by_schedule)
    study = nightly_study
    if not by_schedule:  # it has the seeds of its study, which are here those of the date
        study = study_of_march_1.model_dump(mode="json", by_alias=True)
    schedule = {"wait_minutes": 0} if by_schedule else {}
    parameters = {"study": study, "store": str(tmp_path), "schedule": schedule}
    failed = scheduled(NIGHT, parameters)
    assert failed.state.is_failed()
    assert f"{held[0]} is being worked on by flow run of classify" in failed.state.message
    assert ("raise schedule.wait_minutes" in failed.state.message) == by_schedule
    assert lines.told == []


def test_waiting_notes_are_a_minute_apart(prefect_api, lines):
    clock = [1000.0]

    @flow
    def waiting():
        note = waiting_notes("runs/nightly-1", 5, now=lambda: clock[0])
        for clock[0] in (1005.0, 1030.0, 1064.0, 1065.0, 1124.0, 1200.0):
            note(Holder.here("flow run 7"))

    waiting()
    assert [line.rpartition("works: ")[2] for line in lines.told] == [
        f"{minutes} of at most 5 minutes" for minutes in (0, 1, 3)
    ]


def test_waiting_note_on_a_lease_that_cannot_be_read_names_no_process(prefect_api, lines):
    @flow
    def waiting():
        waiting_notes("runs/nightly-1", 5)(UNKNOWN)

    waiting()
    (line,) = lines.told
    assert line.startswith(
        "waiting for runs/nightly-1, on which a process whose lease cannot be read works: 0 of"
    )


def test_a_flow_run_that_waits_can_be_stopped(prefect_api, monkeypatch):
    monkeypatch.setattr(stopping, "requested_stop", lambda: Stop("cancelled", 130))

    @flow
    def waiting():
        waiting_notes("runs/nightly-1", 5)(Holder.here("flow run 7"))

    with pytest.raises(StoppedError, match="cancelled"):
        waiting()
