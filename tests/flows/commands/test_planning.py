"""Tests of the planning of a study while a Prefect server starts."""

from contextlib import contextmanager

import pytest

from flows.commands import planning
from ldmprobe_core.errors import UserError


@pytest.fixture
def starts(monkeypatch):
    """Record the start and the end of the server in advance, and of the plan between them."""
    events = []

    @contextmanager
    def server():
        events.append("start")
        try:
            yield "server"
        finally:
            events.append("end")

    plan = planning.plan_study_alone

    def recorded(study):
        events.append("plan")
        return plan(study)

    monkeypatch.setattr(planning, "server_in_advance", server)
    monkeypatch.setattr(planning, "plan_study_alone", recorded)
    return events


def test_server_starts_before_the_plan_and_ends_after_the_command(tiny_study, tmp_path, starts):
    path = tmp_path / "study.yaml"
    path.write_text(tiny_study().to_json())
    with planning.planned(str(path), str(tmp_path / "runs"), None) as (plan, run, server):
        assert (plan.study.name, server) == ("tiny", "server")
        assert not run.exists
        starts.append("command")
    assert starts == ["start", "plan", "command", "end"]


def test_no_server_starts_for_a_finished_run(finished_run, tmp_path, starts):
    path = tmp_path / "study.yaml"
    path.write_text(finished_run.study.to_json())
    store = finished_run.url.rpartition("/")[0]
    with planning.planned(str(path), store, None) as (_, run, server):
        assert (run.url, server) == (finished_run.url, None)
    assert starts == ["plan"]


def test_no_server_starts_for_a_study_that_cannot_be_read(tmp_path, starts):
    with (
        pytest.raises(UserError, match="steps"),
        planning.planned("tabletop", str(tmp_path), ["sampling.steps=0"]),
    ):
        pass
    assert starts == []


def test_server_ends_if_the_plan_fails(tmp_path, starts):
    with (
        pytest.raises(UserError, match="matches no module"),
        planning.planned("tabletop", str(tmp_path), ["capture.layers=['nothing.*']"]),
    ):
        pass
    assert starts == ["start", "plan", "end"]
