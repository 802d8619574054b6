"""Tests of scheduled runs of the study flow: the seeds of their date, and their repetition."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError
from run_helpers import assert_same

import flows.study
from flows.scheduling.settings import Schedule
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


@pytest.mark.parametrize(
    "content", [{"keep": 0}, {"keep_activations": -1}, {"keep": 1.5}, {"keep": 10**9}, {"days": 3}]
)
def test_settings_without_meaning_are_refused(content):
    with pytest.raises(ValidationError):
        Schedule.model_validate(content)
