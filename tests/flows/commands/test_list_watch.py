"""Tests of the commands that list runs and watch one, from the store alone."""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace

import pytest
from rich.console import Console
from run_helpers import small_study, statistics_study
from typer.testing import CliRunner

from flows import cli
from flows.commands import list_watch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage import lease as leases
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lease import hold_lease, holder_of
from ldmprobe_core.storage.lifecycle.lease_files import Holder, lease_text


def lines_of(*words):
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, list(words))
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    return [" ".join(line.split()) for line in result.output.splitlines()]


@pytest.fixture
def started(tiny_model, tmp_path):
    """A run of 4 batches, of which one is generated."""
    run = prepare_run(small_study("begun", tiny_model, 16), f"{tmp_path}/runs")
    run.progress.mark_done("generated", 0)
    return run


def test_list_gives_state_and_scores_of_every_run_in_80_columns(started, tmp_path, monkeypatch):
    monkeypatch.setattr(list_watch, "console", Console(width=80, markup=False))
    folder = tmp_path / "runs" / "finished-0123456789"
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps({"model": {"source": "/models/sd-v1-4"}}))
    best = {"best": {"score": {"mean": 0.614, "low": 0.5, "high": 0.7}}}
    (folder / "summary.json").write_text(json.dumps({"properties": {"depth": best}}))
    (tmp_path / "runs" / "no-run").mkdir()
    lost = tmp_path / "runs" / "lost-0123456789"
    lost.mkdir()
    (lost / "study.json").write_text("{")
    ahead = tmp_path / "runs" / "ahead-0123456789"
    ahead.mkdir()
    (ahead / "study.json").write_text('{"model": {"source": "m"}}')
    (ahead / "summary.json").write_text("{}")
    os.utime(ahead / "summary.json", (time.time() + 72.5 * 3600,) * 2)  # another machine's clock
    odd = tmp_path / "runs" / "odd-0123456789"
    odd.mkdir()
    (odd / "study.json").write_text("[1]")
    heading, *rows = lines_of("list", str(tmp_path / "runs"))
    assert heading == "run model state age best scores, or progress"
    text = " ".join(rows)
    assert "finished-0123456789 sd-v1-4 finished < 1 h depth 0.61" in text
    assert "lost-0123456789 unreadable" in text
    assert "ahead-0123456789 m finished in 3 d" in text
    assert "odd-0123456789 unreadable study.json or summary.json is damaged" in text
    assert started.url.rpartition("/")[2] in text
    assert "stopped < 1 h generate 1/" in text
    assert "no-run" not in text
    with hold_lease(started.url, "flow run 1"):
        assert "at work < 1 h generate 1/" in " ".join(lines_of("list", str(tmp_path / "runs")))


def test_list_of_a_store_without_runs_says_so(tmp_path):
    (line,) = lines_of("list", "/tmp/no-runs-here")
    assert line == "/tmp/no-runs-here holds no runs"


def test_watch_follows_a_run_until_no_process_works_on_it(started, monkeypatch):
    shown, looks = [], iter([True, True, False])
    monkeypatch.setattr(list_watch, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(list_watch, "is_held", lambda run, patient: next(looks))
    monkeypatch.setattr(list_watch, "refresh", lambda activity, **values: shown.append(values))
    result = CliRunner().invoke(cli.app, ["watch", started.url])
    assert result.exit_code == 0
    total = len(started.progress.counts("generated"))
    assert [(row["text"], row["done"], row["total"]) for row in shown] == [
        ("generate", 1, total)
    ] * 2
    text = " ".join(result.output.split())
    assert text.startswith(f"{started.url}: generate 1/{total}, label 0/{total}, probe 0/")
    assert f"no process works on it; generate 1/{total}, label 0/{total}, probe 0/" in text


@pytest.mark.parametrize("hours", [-2, 2])
def test_watch_waits_for_a_holder_whose_clock_differs(started, tmp_path, monkeypatch, hours):
    """A process on another machine works on the run; by the clocks, its lease is old or to come."""
    location = Location(f"{started.url}.lease")
    holder = Holder("key", "flow run 1", "another machine", 1, 0.0)
    location.write_text("000001", lease_text(holder))
    path, beats = f"{started.url}.lease/000001", []
    now = time.time() + 3600 * hours
    os.utime(path, (now, now))

    def beat(_):
        beats.append(1)
        if len(beats) < 4:
            os.utime(path, (now + len(beats),) * 2)
        else:
            location.remove("000001")

    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=beat))
    monkeypatch.setattr(list_watch, "LOOK_EVERY_S", 0.0)
    assert "stopped" in CliRunner().invoke(cli.app, ["list", str(tmp_path / "runs")]).output
    assert not beats  # `list` does not wait
    assert "no process works on it" in CliRunner().invoke(cli.app, ["watch", started.url]).output
    assert len(beats) == 4


def test_watch_refuses_a_folder_without_a_run(tmp_path):
    assert CliRunner().invoke(cli.app, ["watch", str(tmp_path)]).exit_code == 1


def test_unit_counts_counts_the_units_of_every_accumulator(tiny_model, tmp_path):
    run = prepare_run(statistics_study(tiny_model, "statistics"), f"{tmp_path}/runs")
    from ldmprobe_core.pipeline.units import UNITS

    assert {verb: total for verb, (_, total) in list_watch.unit_counts(run).items()} == {
        verb: len(UNITS[verb].list_units(run))
        for verb in ("generate", "label", "accumulate", "probe")
    }


def test_holder_of_a_run_that_no_process_holds_is_none(tmp_path):
    url = str(tmp_path / "run")
    assert holder_of(url) is None
    with hold_lease(url, "flow run 7"):
        assert holder_of(url).description == "flow run 7"
    assert holder_of(url) is None


def test_version_option_prints_the_version():
    (line,) = lines_of("--version")
    assert line.startswith("ldmprobe 0.")
