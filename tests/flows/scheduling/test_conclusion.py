"""Tests of what follows a scheduled run: old runs are deleted, and a failure is only reported."""

from __future__ import annotations

import json
import logging
import os
import shutil
from datetime import UTC, date, datetime

import httpx
import pytest
from prefect.client.orchestration import get_client

import tasks.study
from flows.scheduling import conclusion
from flows.scheduling.settings import Schedule
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.lease import hold_lease
from ldmprobe_core.storage.lifecycle.schedule_record import ScheduleRecord, write_schedule_record
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study
from tasks.references import RunRef

MARCH_1 = datetime(2026, 3, 1, 3, tzinfo=UTC)


@pytest.fixture
def store(nightly_study, run_of_march_1, tmp_path):
    """Store with the complete units of March 1, and three finished runs without data.

    Those of January and February were scheduled, that of the seed 1 was not.
    """
    folder = tmp_path / "runs"
    shutil.copytree(run_of_march_1.url, folder / run_of_march_1.study.run_name)
    made = {}
    for seed, day in {1: None, 2: date(2026, 1, 7), 3: date(2026, 2, 7)}.items():
        content = nightly_study | {"prompts": nightly_study["prompts"] | {"seed": seed}}
        run = prepare_run(parse_study(content), str(folder))
        run.location.write_text("summary.json", "{}")
        if day is not None:
            write_schedule_record(run.location, ScheduleRecord(scheduled_for=day))
        made[seed] = run
    return folder, made


def table_of(artifact: str, flow_run) -> list[dict[str, object]]:
    with get_client(sync_client=True) as client:
        (data,) = [
            found.data
            for found in client.read_artifacts()
            if found.key == artifact and found.flow_run_id == flow_run.id
        ]
    return json.loads(data)


def chunks(run: Run) -> list[str]:
    return [name for name in os.listdir(f"{run.url}/activations/{run.layers[0]}/activation")]


@pytest.mark.slow
def test_old_scheduled_runs_are_deleted_after_the_study(
    scheduled, nightly_study, run_of_march_1, store, monkeypatch
):
    folder, (unscheduled, january, february) = store[0], store[1].values()
    new = Run(f"{folder}/{run_of_march_1.study.run_name}")
    settings = {"keep": 1, "keep_activations": 0}
    parameters = {"study": nightly_study, "store": str(folder), "schedule": settings}
    with hold_lease(february.url, "a reader"):
        first = scheduled(MARCH_1, parameters)
    assert first.state.is_completed(), first.state.message
    kept = {run.url.rpartition("/")[2] for run in (new, unscheduled, february)}
    assert set(os.listdir(folder)) == kept | {"history", "index.html"}
    assert "c" not in chunks(new)
    assert "c" in chunks(run_of_march_1)
    rows = table_of("retention-nightly", first)
    assert [(row["run"], row["action"], row["reason"]) for row in rows] == [
        (new.url.rpartition("/")[2], "delete activations", ""),
        (january.url.rpartition("/")[2], "delete", ""),
        (february.url.rpartition("/")[2], "left alone", "a reader works on it"),
    ]
    (night,) = table_of("history-nightly", first)
    assert (night["date"], night["run"]) == ("2026-03-01", new.url.rpartition("/")[2])
    assert night["differs from the newest run in"] == ""
    assert "Scheduled runs of nightly" in (folder / "index.html").read_text()
    summary = new.location.read_bytes("summary.json")

    # The date's second flow run generates nothing again, and a failure does not fail it.
    def no_answer(*arguments, **options):
        raise OSError("the store does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(tasks.study, "plan_retention", no_answer)
        second = scheduled(MARCH_1, parameters)
    assert second.state.is_completed(), second.state.message
    assert "c" not in chunks(new)
    assert new.location.read_bytes("summary.json") == summary
    (row,) = table_of("retention-nightly", second)
    assert row["reason"] == "OSError: the store does not answer"
    assert february.exists

    # Without a history, nothing is deleted.
    shutil.rmtree(folder / "history")
    (folder / "history").write_text("in the way")
    third = scheduled(MARCH_1, parameters)
    assert third.state.is_completed(), third.state.message
    (row,) = table_of("retention-nightly", third)
    assert row["reason"] == "the history was not written, so nothing is deleted"
    assert february.exists


def test_failures_are_logged_and_published_without_the_logins_of_addresses(monkeypatch, caplog):
    def refused(*arguments):
        raise httpx.ConnectError("no answer of http://admin:hidden@server/api")

    published = []
    monkeypatch.setattr(conclusion, "get_run_logger", lambda: logging.getLogger("conclusion"))
    monkeypatch.setattr(conclusion, "update_history", lambda store, study: [])
    monkeypatch.setattr(conclusion, "publish_history", lambda study, rows: None)
    monkeypatch.setattr(conclusion, "prune_scheduled_runs", refused)
    monkeypatch.setattr(conclusion, "write_index", refused)
    monkeypatch.setattr(conclusion, "publish_retention", lambda *row: published.append(row))
    conclusion.conclude(RunRef(url="/runs/nightly-1", identity="1"), "nightly", Schedule(keep=1))
    reason = "ConnectError: no answer of http://server/api"
    assert published == [("nightly", [], reason)]
    assert caplog.messages == [
        f"{what} failed, and the study is complete: {reason}" for what in ("retention", "index")
    ]
