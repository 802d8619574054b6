"""The analysis that a report keeps: equal to a new one, and discarded once an input differs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ldmprobe_core.analysis import summarize
from ldmprobe_core.analysis.kept_analysis import KEPT, analyse, inputs_digest, keep_analysis
from ldmprobe_core.analysis.report.build import rebuild_report
from ldmprobe_core.analysis.run_analysis import current_fields
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import REGISTERED_METRICS


@pytest.fixture
def copied(finished_run, tmp_path):
    """A copy of a finished run whose report keeps an analysis."""
    shutil.copytree(finished_run.url, tmp_path / "run")
    return Run(str(tmp_path / "run"))


@pytest.fixture
def computed(monkeypatch):
    """Number of times that statistics were computed."""
    calls = []
    compute = summarize.summarise
    monkeypatch.setattr(
        summarize, "summarise", lambda *args: (calls.append(args[0].url), compute(*args))[1]
    )
    return calls


def test_kept_analysis_equals_one_that_is_computed_from_the_run(copied, computed):
    kept, new = analyse(copied, {"probe": 1.0}), summarize.summarise(copied, {"probe": 1.0})
    assert len(computed) == 1  # only the one that this test asked for
    assert kept.summary == new.summary
    assert kept.curves.keys() == new.curves.keys()
    for prop, curves in new.curves.items():
        other = kept.curves[prop]
        assert (other.kind, other.layer) == (curves.kind, curves.layer)
        for name in ("probe", "position", "compared", "cells", "decoded", "decoded_steps"):
            assert np.array_equal(getattr(other, name), getattr(curves, name), equal_nan=True)
        for name in ("conditions", "sources", "inputs", "inputs_compared", "other_cells"):
            ours, theirs = getattr(other, name), getattr(curves, name)
            assert list(ours) == list(theirs)
            assert all(np.array_equal(ours[k], theirs[k], equal_nan=True) for k in theirs)
    assert kept.test.tolist() == new.test.tolist()
    values = np.arange(len(new.test), dtype=float)
    assert kept.bootstrap.interval(values) == new.bootstrap.interval(values)


def test_rebuilt_report_has_the_same_files_without_new_statistics(finished_run, copied, computed):
    rebuild_report(copied)
    assert computed == []
    for name in finished_run.location.files("report"):
        if name != "index.html":  # which states the size of the run
            before = finished_run.location.read_bytes(f"report/{name}")
            assert copied.location.read_bytes(f"report/{name}") == before, name
    before, after = (
        json.loads(run.location.read_text("summary.json")) for run in (finished_run, copied)
    )
    del before["bytes"], after["bytes"]
    assert before == after


def test_analysis_is_computed_again_if_a_score_differs(copied, computed):
    score = copied.read("scores/depth", "score")
    score[..., -1] = np.clip(score[..., -1] - 0.25, -1, 1)
    copied.write("scores/depth", {"score": score})
    before = json.loads(copied.location.read_text("summary.json"))["properties"]["depth"]["best"]
    after = rebuild_report(copied).properties["depth"].best
    assert computed == [copied.url]
    assert after.score.mean != before["score"]["mean"]


@pytest.mark.parametrize("changed", ["interventions", "seconds", "memory", "bytes", "notes"])
def test_equal_statistics_are_kept_in_equal_files(copied, changed):
    """Fields that change afterwards, as with a note on a second environment, do not matter."""
    assert changed in current_fields(copied, {})
    analysis, kept = analyse(copied, {}), copied.location.read_bytes(KEPT)
    values = {"bytes": 1, "notes": ("computed with two versions",), "seconds": {"probe": 2.0}}
    other = analysis.summary.model_copy(update={changed: values.get(changed, {"shift": None})})
    digest = inputs_digest(copied, label_set(copied))
    keep_analysis(copied, replace(analysis, summary=other), digest)
    assert copied.location.read_bytes(KEPT) == kept


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", "truncated"])
def test_analysis_is_computed_again_if_its_file_is_damaged(copied, computed, damage):
    whole = copied.location.read_bytes(KEPT)
    copied.location.write_bytes(KEPT, whole[:-100] if damage == "truncated" else damage)
    analyse(copied, {})
    assert computed == [copied.url]
    assert copied.location.read_bytes(KEPT) == whole


def test_analysis_depends_on_every_input(copied, monkeypatch):
    labels = label_set(copied)
    digests = [inputs_digest(copied, labels)]
    copied.location.write_text("photographs.json", "{}")
    digests.append(inputs_digest(copied, labels))
    maps = labels.maps["depth"].copy()
    maps[0, 0, 0] += 1
    monkeypatch.setitem(labels.maps, "depth", maps)
    digests.append(inputs_digest(copied, labels))
    record = f"checksums/progress/probed/{copied.location.files('checksums/progress/probed')[0]}"
    copied.location.write_text(record, "{}")
    digests.append(inputs_digest(copied, labels))
    assert None not in digests
    assert len(set(digests)) == 4


def test_analysis_is_not_kept_for_metrics_from_outside(copied, monkeypatch):
    monkeypatch.setattr(
        "ldmprobe_core.analysis.kept_analysis.REGISTERED_METRICS", REGISTERED_METRICS | {"dice"}
    )
    assert inputs_digest(copied, label_set(copied)) is None
