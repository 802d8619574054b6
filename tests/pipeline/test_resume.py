"""Runs that are repeated, reordered, interrupted or killed hold the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_helpers import assert_same, carry_out
from tiers import rest_slow

from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell


def test_repeated_run_is_equal_bit_for_bit(finished_run, tmp_path):
    assert_same(finished_run, carry_out(finished_run.study, str(tmp_path)))


def test_reversed_order_of_batches_and_cells_gives_the_same_bytes(finished_run, tmp_path):
    study = finished_run.study
    run = prepare_run(study, str(tmp_path))
    for batch in reversed(range(len(study.batches(run.n_stored)))):
        generate_batch(run.url, batch)
    for batch in reversed(range(len(study.batches(run.n_stored)))):
        label_batch(run.url, batch)
    for layer in reversed(run.probe_inputs):
        for step in (3, 1, 2):
            probe_cell(run.url, step, layer)
    assert_same(finished_run, run)


def test_units_that_are_marked_done_are_not_repeated(finished_run):
    assert generate_batch(finished_run.url, 0)["samples"] == 0
    assert label_batch(finished_run.url, 0)["images"] == 0
    assert probe_cell(finished_run.url, 1, finished_run.layers[0])["seconds"] == 0


def test_resume_repeats_a_batch_that_is_not_marked_done(finished_run, tmp_path):
    study = finished_run.study
    run = prepare_run(study, str(tmp_path))
    generate_batch(run.url, 1)
    garbage = {"nonfinite": np.full((4, 3), 77, np.int32)}
    run.write(
        f"activations/{run.layers[0]}", garbage, sample=slice(0, 4)
    )  # cut off before its mark
    carry_out(study, str(tmp_path))
    assert_same(finished_run, run)


ROOT = Path(__file__).parents[2]


KILLED = """
import os, signal, sys
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study
import json
sys.path.insert(0, "tests/helpers")
from run_helpers import carry_out
real = Run.write

def start(deaths):
    count = 0
    def write(self, *a, **k):
        nonlocal count
        count += 1
        if count == deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *a, **k)
    Run.write = write
    carry_out(parse_study(json.load(open(sys.argv[1]))), sys.argv[2])

for deaths in sys.argv[3:]:
    process = os.fork()
    if not process:
        start(int(deaths))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""
"""Program that starts a process for each number of writes; they share the imports of libraries."""


@pytest.mark.parametrize(
    "deaths", rest_slow(["9", "2 5 9 4 17"], (0,)), ids=["once", "again and again"]
)
def test_resume_after_sigkill_during_writes_gives_the_same_bytes(finished_run, tmp_path, deaths):
    """Killed in the middle of writing; what is resumed ends up the same.

    Each number of ``deaths`` is the write of a new process at which that process is killed.
    """
    path = tmp_path / "study.json"
    path.write_text(finished_run.study.to_json())
    words = (str(path), str(tmp_path / "runs"), *deaths.split())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    codes = [int(line) for line in done.stdout.splitlines()]
    assert codes == [-signal.SIGKILL] * len(deaths.split()), done.stderr
    run = carry_out(finished_run.study, str(tmp_path / "runs"))
    assert_same(finished_run, run)
