"""History of scheduled studies: its entries, what marks a run as another, charts, and the page."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ldmprobe_core.analysis.index.build import write_index
from ldmprobe_core.analysis.index.history import (
    HeadlineScore,
    HistoryEntry,
    differences,
    history_rows,
    read_history,
    update_history,
)
from ldmprobe_core.analysis.index.history_chart import history_charts
from ldmprobe_core.errors import UserError
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lifecycle.schedule_record import ScheduleRecord, write_schedule_record
from ldmprobe_core.storage.run import Run

SVG = "{http://www.w3.org/2000/svg}"


def entry(day: date, mean: float, **changes) -> HistoryEntry:
    """Run of a day whose depth has a mean score, with an interval of 0.1 on both sides."""
    score = Interval(mean=mean, low=mean - 0.1, high=mean + 0.1)
    values = {
        "run": f"night-{day:%m%d}",
        "scheduled_for": day,
        "finished": datetime(day.year, day.month, day.day, 4, tzinfo=UTC),
        "settings": {"sampling": {"steps": 15, "batch": 4}, "prompts": {"samples": 24}},
        "weights": {"model": "aa", "labels.depth": "bb"},
        "versions": {"torch": "2.14.1", "ldmprobe": "0.3.0"},
        "code": "c0de",
        "test_samples": 9,
        "scores": {"depth": HeadlineScore(metric="spearman", score=score, step=3, layer="mid")},
    }
    return HistoryEntry.model_validate(values | changes)


@pytest.fixture
def store(finished_run, tmp_path):
    """Store with a finished run of 2026-03-01 that a schedule started, and one that none did."""
    shutil.copytree(finished_run.url, tmp_path / finished_run.study.run_name)
    shutil.copytree(finished_run.url, tmp_path / "whole-0000000000")
    run = Run(f"{tmp_path}/{finished_run.study.run_name}")
    record = ScheduleRecord(scheduled_for=date(2026, 3, 1), code="c0de")
    write_schedule_record(run.location, record)
    return run


def test_history_has_the_scheduled_runs_alone_and_outlives_them(store):
    folder = Path(store.url).parent
    (only,) = update_history(str(folder), "whole")
    assert only.run == store.study.run_name
    assert (only.scheduled_for, only.code) == (date(2026, 3, 1), "c0de")
    summary = json.loads((Path(store.url) / "summary.json").read_text())
    for prop, result in summary["properties"].items():
        best, found = result["best"], only.scores[prop]
        assert found.score.model_dump() == best["score"]
        assert (found.metric, found.step) == (best["metric"], best["step"])
    assert only.scores.keys() == summary["properties"].keys() | summary.get("numbers", {}).keys()
    assert only.settings["prompts"]["samples"] == 14
    assert "seed" not in only.settings["prompts"]
    shutil.rmtree(store.url)
    assert update_history(str(folder), "whole") == [only]
    assert read_history(Location(str(folder)), "other") == []
    # A damaged entry hides itself, not the others.
    (folder / "history/whole/damaged.json").write_text("{")
    assert read_history(Location(str(folder)), "whole") == [only]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"code": "0ther"}, ["code"]),
        ({"code": None}, ["code"]),
        ({"settings": {"sampling": {"steps": 30, "batch": 4}, "prompts": {"samples": 24}}},
         ["sampling.steps 30 (not 15)"]),
        ({"versions": {"torch": "2.13.0", "ldmprobe": "0.3.0"}}, ["torch 2.13.0 (not 2.14.1)"]),
        ({"weights": {"model": "aa", "labels.depth": "b2"}}, ["weights of labels.depth"]),
        ({"test_samples": 7}, []),
    ],
)  # fmt: skip
def test_a_run_of_another_study_or_code_is_marked_as_such(changes, named):
    old, new = entry(date(2026, 3, 1), 0.5, **changes), entry(date(2026, 3, 2), 0.6)
    assert differences(old, new) == named
    newest, oldest = history_rows([old, new])
    assert [row["date"] for row in (newest, oldest)] == ["2026-03-02", "2026-03-01"]
    assert newest["depth"] == "0.60 [0.50, 0.70] (rank correlation)"
    assert oldest["depth"] == "0.50 [0.40, 0.60] (rank correlation)"
    assert newest["differs from the newest run in"] == ""
    assert oldest["differs from the newest run in"] == ", ".join(named)


def test_charts_place_runs_by_date_and_score_and_mark_others_by_hollow_points():
    days = (1, 2, 5)
    entries = [entry(date(2026, 3, day), 0.5 + day / 100) for day in days]
    entries[1] = entries[1].model_copy(update={"code": "0ther"})
    dice = HeadlineScore(
        metric="dice", score=Interval(mean=0.9, low=None, high=None), step=1, layer="mid"
    )
    entries.insert(0, entry(date(2026, 2, 1), 0.1, scores={"depth": dice}))
    ((caption, chart),) = history_charts(entries).items()
    assert caption == "depth: rank correlation (1 of 4 runs has no such score)"
    figure = ElementTree.fromstring(chart)  # our own figure
    circles = figure.findall(f".//{SVG}circle")
    x = [float(circle.get("cx")) for circle in circles]
    y = [float(circle.get("cy")) for circle in circles]
    # March 2 is one of the four days from March 1 to 5; SVG counts downwards.
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(1 / 4, abs=0.01)
    assert (y[0] - y[1]) / (y[0] - y[2]) == pytest.approx(1 / 4, abs=0.05)
    assert y[0] > y[1] > y[2]
    assert [circle.get("fill") == "none" for circle in circles] == [False, True, False]
    lines = figure.findall(f".//{SVG}line")
    for line, middle in zip(lines, y, strict=True):
        low, high = float(line.get("y1")), float(line.get("y2"))
        assert (low + high) / 2 == pytest.approx(middle, abs=0.1)
    assert figure.findall(f".//{SVG}path") + figure.findall(f".//{SVG}polyline") == []
    assert "code" in circles[1].find(f"{SVG}title").text


def test_index_shows_the_history_of_deleted_runs_and_refuses_an_empty_store(store):
    folder = Path(store.url).parent
    with pytest.raises(UserError, match="there is no run in it"):
        write_index(str(folder / "none"))
    update_history(str(folder), "whole")
    text = Path(write_index(str(folder))).read_text()
    assert f'<td><a href="{store.study.run_name}/report/index.html">' in text
    for url in folder.glob("whole-*"):
        shutil.rmtree(url)
    text = Path(write_index(str(folder))).read_text()
    assert "Scheduled runs of whole" in text
    assert f"<td>{store.study.run_name}</td>" in text
    assert text.count("<figure>") == 3
