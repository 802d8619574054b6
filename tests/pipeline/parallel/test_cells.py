"""Cells in helper processes: same numbers as in one process, and no harm if a helper fails."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from ldmprobe_core.pipeline.parallel import cells
from ldmprobe_core.pipeline.parallel.helper_process import HelperProcess
from ldmprobe_core.pipeline.units import UNITS
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE


@pytest.fixture
def unprobed(finished_run, tmp_path, monkeypatch):
    """Copy of a finished run whose cells at the first step count as not probed."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(cells, "SMALLEST_WORK", 1)
    shutil.copytree(finished_run.url, tmp_path / "run")
    run = Run(str(tmp_path / "run"))
    for layer, _ in enumerate(run.probe_inputs):
        run.progress.clear(PROBE, 0, layer)
        run.write(f"probes/{run.probe_inputs[layer]}", {"weight": _blank(run, layer)}, step=_FIRST)
    return run


_FIRST = slice(0, 1)


def _blank(run, layer):
    weight = run.open(f"probes/{run.probe_inputs[layer]}").weight
    return np.full((*weight.shape[:2], 1, *weight.shape[3:]), -7.0)


def _probe(run):
    units = [unit for unit in UNITS["probe"].list_units(run) if unit.index[0] == 1]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda u: UNITS["probe"].carry_out(run.url, *u.index), units))


def _require_equal(run, reference):
    assert run.progress.completed(PROBE).all()
    for layer in run.probe_inputs:
        for name in ("weight", "bias", "penalty", "cut"):
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
    with cells.cell_helpers(unprobed, 1) as started:
        _probe(unprobed)
    assert started == 1
    assert "the helper process that probed it has failed (exit code 3)" in caplog.text
    _require_equal(unprobed, finished_run)


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


def test_memory_of_a_helper_exceeds_labels_and_a_cell(finished_run):
    labels = sum(
        finished_run.read("labels", prop).nbytes for prop in finished_run.study.labels.maps
    )
    layer = finished_run.layers[0]
    cell = finished_run.read(f"activations/{layer}", "activation", step=0).nbytes
    assert cells.helper_bytes(finished_run) > (600 << 20) + labels + 4 * cell  # float64
