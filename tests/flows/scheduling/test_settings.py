"""Tests of scheduled flow runs: the seeds of their date, and their repetition."""

from __future__ import annotations

import json
import os
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import Scheduled
from pydantic import ValidationError
from run_helpers import assert_same

import flows.classify
import flows.study
from flows.scheduling.settings import Schedule, scheduled_date
from ldmprobe_core.errors import RunError
from ldmprobe_core.pipeline.prepare import code_digest
from ldmprobe_core.storage.run import Run


@pytest.mark.slow
def test_a_scheduled_run_has_the_seeds_of_its_date_and_its_retry_continues_it(
    scheduled, nightly_study, run_of_march_1, tmp_path, monkeypatch
):
    parameters = {"study": nightly_study, "store": str(tmp_path), "schedule": {}}
    # Twenty minutes before midnight in UTC; the flow run itself starts today.
    evening = datetime(2026, 3, 1, 23, 40, tzinfo=UTC)

    def no_power(*arguments):
        raise RunError("power failure")

    with monkeypatch.context() as patched:
        patched.setattr(flows.study, "summarise", no_power)
        failed = scheduled(evening, parameters)
    assert failed.state.is_failed()
    expected = run_of_march_1.study
    run = Run(f"{tmp_path}/{expected.run_name}")
    assert not run.location.has("summary.json")
    retried = scheduled(evening, parameters, again=failed)
    assert (retried.run_count, retried.state.is_completed()) == (2, True)
    assert set(os.listdir(tmp_path)) == {expected.run_name, "history", "index.html"}
    assert_same(run, run_of_march_1)
    record = json.loads(run.location.read_text("schedule.json"))
    assert record == {"scheduled_for": "2026-03-01", "code": code_digest()}
    assert run.study.prompts.seed == expected.prompts.seed


def test_a_scheduled_classify_flow_run_has_the_seeds_of_its_date(
    scheduled, nightly_study, tmp_path, monkeypatch
):
    """It generates nothing if the study flow has finished the run of the date."""
    generated, classified = [], []

    def generate(run, execution, left):
        generated.append(Run(run.url))

    monkeypatch.setattr(flows.classify, "generate_and_label", generate)
    monkeypatch.setattr(
        flows.classify, "classify", lambda run, photographs: classified.append(run.url) or {}
    )
    monkeypatch.setattr(flows.classify, "publish_classes", lambda *arguments: None)
    parameters = {"study": nightly_study, "store": str(tmp_path), "schedule": {}}
    time = datetime(2026, 3, 1, 2, tzinfo=UTC)
    done = scheduled(time, parameters, flow=flows.classify.classify_flow)
    assert done.state.is_completed(), done.state.message
    (run,) = generated
    # 56 years from 1970 on, of which 14 are leap years, then January and February.
    assert run.study.prompts.seed == (56 * 365 + 14 + 31 + 28) * 100_000
    assert json.loads(run.location.read_text("schedule.json"))["scheduled_for"] == "2026-03-01"
    monkeypatch.setattr(flows.classify, "summary_if_finished", lambda *arguments: {})
    again = scheduled(time, parameters, flow=flows.classify.classify_flow)
    assert again.state.is_completed(), again.state.message
    assert generated == [run]
    assert classified == [run.url, run.url]


@pytest.mark.parametrize(
    ("settings", "by_schedule", "expected"),
    [
        (None, True, None),
        ({"keep": 3}, False, None),
        ({"keep": 3}, True, date(2026, 3, 1)),
        ({"date": "2026-02-07"}, False, date(2026, 2, 7)),
        ({"date": "2026-02-07"}, True, date(2026, 2, 7)),
    ],
)
def test_only_a_schedule_or_a_date_makes_a_flow_run_scheduled(
    prefect_api, mark_as_scheduled, settings, by_schedule, expected
):
    found = []

    @flow
    def dated(schedule: Schedule | None = None) -> None:
        found.append(scheduled_date(schedule))

    # 23:40 in UTC is the next day in Berlin.
    local = datetime(2026, 3, 2, 0, 40, tzinfo=ZoneInfo("Europe/Berlin"))
    parameters = {"schedule": settings}
    mark_as_scheduled(by_schedule)
    with get_client(sync_client=True) as client:
        state = Scheduled(scheduled_time=local)
        made = client.create_flow_run(dated, parameters=parameters, state=state)
    run_flow(dated, made, parameters)
    assert found == [expected]


@pytest.mark.parametrize(
    "content",
    [
        {"date": "1st March"},
        {"keep": 0},
        {"keep_activations": -1},
        {"keep": 1.5},
        {"keep": 10**9},
        {"days": 3},
    ],
)
def test_settings_without_meaning_are_refused(content):
    with pytest.raises(ValidationError):
        Schedule.model_validate(content)
