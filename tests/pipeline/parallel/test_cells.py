"""Cells in helper processes: same numbers as in one process, and no harm if a helper fails."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from ldmprobe_core.errors import RunError
from ldmprobe_core.pipeline.parallel import cells
from ldmprobe_core.pipeline.parallel.helper_process import HelperProcess
from ldmprobe_core.pipeline.units import UNITS
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE


@pytest.fixture
def unprobed(finished_run, tmp_path, monkeypatch):
    """Copy of a finished run whose cells at the first step are not probed: their results are -7."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(cells, "SMALLEST_WORK", 1)
    shutil.copytree(finished_run.url, tmp_path / "run")
    run = Run(str(tmp_path / "run"))
    for index, layer in enumerate(run.probe_inputs):
        run.progress.clear(PROBE, 0, index)
        _overwrite(run, f"probes/{layer}", PROBES)
    for prop in run.study.labels.maps:
        _overwrite(run, f"scores/{prop}", ["score"])
    return run


PROBES = ("weight", "bias", "penalty", "cut", "position")


def _overwrite(run, group, names):
    """Write -7 into the first step of arrays with results."""
    first = {name: run.read(group, name, step=slice(0, 1)) for name in names}
    run.write(group, {n: np.full_like(a, -7) for n, a in first.items()}, step=slice(0, 1))


def _probe(run):
    units = [unit for unit in UNITS["probe"].list_units(run) if unit.index[0] == 1]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda u: UNITS["probe"].carry_out(run.url, *u.index), units))


def _require_equal(run, reference):
    assert run.progress.completed(PROBE).all()
    for layer in run.probe_inputs:
        for name in PROBES:
            np.testing.assert_array_equal(
                run.read(f"probes/{layer}", name), reference.read(f"probes/{layer}", name)
            )
    for prop in run.study.labels.maps:
        np.testing.assert_array_equal(
            run.read(f"scores/{prop}", "score"), reference.read(f"scores/{prop}", "score")
        )


def test_two_processes_store_the_probes_and_scores_of_one(unprobed, finished_run, monkeypatch):
    answers, ask = [], HelperProcess.ask

    def noted(helper, function, **job):
        answers.append(ask(helper, function, **job))
        return answers[-1]

    monkeypatch.setattr(HelperProcess, "ask", noted)
    with cells.cell_helpers(unprobed, 1) as started:
        results = _probe(unprobed)
    assert started == 1
    assert answers
    assert None not in answers
    assert all(result["seconds"] > 0 for result in results)
    _require_equal(unprobed, finished_run)


def test_cells_of_a_helper_that_fails_are_probed_here(
    unprobed, finished_run, monkeypatch, tmp_path, caplog
):
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\nread job\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(failing))
    asked, ask = [], HelperProcess.ask
    monkeypatch.setattr(
        HelperProcess, "ask", lambda *job, **rest: (asked.append(job), ask(*job, **rest))[1]
    )
    with cells.cell_helpers(unprobed, 1) as started:
        _probe(unprobed)
    assert started == 1
    assert len(asked) == 1  # a helper that has failed gets no further cell
    assert "the helper process that probed it has failed (exit code 3)" in caplog.text
    _require_equal(unprobed, finished_run)


def test_a_stop_waits_for_the_cell_in_a_helper(unprobed, monkeypatch):
    asked, answers, ask = threading.Event(), [], HelperProcess.ask
    layer = unprobed.probe_inputs[0]

    def noted(helper, function, **job):
        asked.set()
        return ask(helper, function, **job)

    def never(*_):
        raise AssertionError("the cell is probed in this process too")

    def stopped(pool):
        answers.append(pool.submit(UNITS["probe"].carry_out, unprobed.url, 1, layer))
        assert asked.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(HelperProcess, "ask", noted)
    monkeypatch.setattr(cells, "probe_cell", never)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt), cells.cell_helpers(unprobed, 1):
            stopped(pool)
        assert unprobed.progress.is_done(PROBE, 0, 0)
        assert answers[0].result(60)["seconds"] > 0


def test_a_cell_whose_helper_was_ended_is_not_begun_again(unprobed, monkeypatch):
    """As after a second Ctrl-C, which ends the wait for the helper."""

    def broken_off(helper, function, **job):
        helper.closed = True

    monkeypatch.setattr(HelperProcess, "ask", broken_off)
    monkeypatch.setattr(cells, "probe_cell", lambda *_: {})
    with (
        cells.cell_helpers(unprobed, 1),
        pytest.raises(RunError, match=r"run: the run stops, and step 1 of .* Fix: repeat"),
    ):
        UNITS["probe"].carry_out(unprobed.url, 1, unprobed.probe_inputs[0])


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (5, 2)])
def test_there_are_no_more_helpers_than_the_work_pays_for(unprobed, monkeypatch, most, expected):
    left = np.count_nonzero(~unprobed.progress.completed(PROBE)) * unprobed.n_stored
    monkeypatch.setattr(cells, "SMALLEST_WORK", left // 2)
    with cells.cell_helpers(unprobed, most) as started:
        assert started == expected


def test_no_helper_is_started_for_little_work(unprobed, monkeypatch):
    left = np.count_nonzero(~unprobed.progress.completed(PROBE)) * unprobed.n_stored
    monkeypatch.setattr(cells, "SMALLEST_WORK", left + 1)
    with cells.cell_helpers(unprobed, 1) as started:
        assert started == 0


@pytest.mark.parametrize("section", ["labels", "probes"])
def test_no_helper_is_started_for_what_only_this_process_knows(unprobed, monkeypatch, section):
    study = unprobed.study
    own = {"labels": study.labels, "probes": study.probes}
    own["labels" if section == "labels" else "probes"] = SimpleNamespace(
        maps=(*study.labels.maps, "of the user"), kinds=(*study.probes.kinds, "of the user")
    )
    monkeypatch.setattr(unprobed, "study", SimpleNamespace(**own))
    with cells.cell_helpers(unprobed, 1) as started:
        assert started == 0


def test_memory_of_a_helper_grows_with_labels_and_cells(finished_run, monkeypatch):
    """It holds at least the labels, and a cell as stored in float16 and in float64."""
    maps = finished_run.study.labels.maps
    labels = sum(finished_run.read("labels", prop).nbytes for prop in maps)
    cell = max(
        finished_run.read(f"activations/{layer}", "activation", step=0).nbytes
        for layer in finished_run.layers
    )
    size = cells.helper_bytes(finished_run)
    monkeypatch.setattr(cells, "HELPER_LIBRARY_BYTES", 0)
    rest = cells.helper_bytes(finished_run)
    assert size - rest == 720 << 20
    assert rest >= labels + 5 * cell
