"""Division of statistics between two processes: every part once, and none lost if one fails."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from ldmprobe_core.analysis.controls.training_size import CorrectedDifference
from ldmprobe_core.analysis.parts.property_part import PropertyPart
from ldmprobe_core.analysis.parts.run_parts import part_of_message, part_to_message
from ldmprobe_core.analysis.parts.sharing import compute_parts

JOBS = [{"kind": "resplits", "name": f"layer {i}"} for i in range(6)]


def values_of(name):
    rng = np.random.default_rng(int(name.split()[1]))
    return {"depth": (rng.random((2, 3)), rng.random((2, 4)))}


class Second:
    """Stand-in for a second process, which answers in a thread until it fails."""

    def __init__(self, answers):
        self.answers, self.asked, self.warned = answers, [], False
        self._pool = ThreadPoolExecutor(1)

    def can_compute(self, run):
        return True

    def warn(self):
        self.warned = True

    def start(self, function):
        future = self._pool.submit(function)
        if self.answers:
            # Let the second process finish first, so that what it takes is certain.
            future.result()
        return future

    def ask(self, function, url, part):
        if len(self.asked) == self.answers:
            return None
        self.asked.append(part["name"])
        record, arrays = part_to_message(part, values_of(part["name"]))
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return record, buffer.getvalue()


@pytest.mark.parametrize("answers", [0, 2, 6])
def test_every_part_is_computed_once_in_the_order_of_the_jobs(answers):
    run, second, here = SimpleNamespace(url="run"), Second(answers), []

    def compute(job):
        here.append(job["name"])
        return values_of(job["name"])

    parts = compute_parts(run, JOBS, compute, second)
    assert sorted(second.asked + here) == [job["name"] for job in JOBS]
    assert len(second.asked) == answers
    if answers:
        assert second.warned == (answers < len(JOBS))
    for job, found in zip(JOBS, parts, strict=True):
        for one, other in zip(found["depth"], values_of(job["name"])["depth"], strict=True):
            assert one.tobytes() == other.tobytes()


def test_a_property_part_is_unchanged_by_its_message():
    rng = np.random.default_rng(0)
    scores = rng.random((2, 5))
    scores[0, 1] = np.nan
    one = PropertyPart(
        scores,
        {"prompt": scores},
        {"8x8": 1 / 3, "16x16": None},
        {"latents": CorrectedDifference(rng.random(5), 0.1 + 0.2)},
        0.25,
    )
    job = {"kind": "property", "name": "depth"}
    other = part_of_message(job, part_to_message(job, one))
    assert other.position.tobytes() == one.position.tobytes()
    assert list(other.without_cells) == list(one.without_cells)
    for key, values in one.without_cells.items():
        assert other.without_cells[key].tobytes() == values.tobytes()
    assert (other.ceilings, other.missing) == (one.ceilings, one.missing)
    assert other.corrected["latents"].error == one.corrected["latents"].error
    assert other.corrected["latents"].values.tobytes() == one.corrected["latents"].values.tobytes()


def test_torch_that_a_kind_of_probe_needs_is_limited_to_one_thread():
    """A new process has not loaded torch before."""
    script = (
        "from types import SimpleNamespace as Namespace\n"
        "from ldmprobe_core.analysis.parts.run_parts import one_thread\n"
        "study = Namespace(probes=Namespace(kinds=('ridge', 'adam')))\n"
        "with one_thread(study):\n"
        "    import torch\n"
        "    print(torch.get_num_threads())\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    assert subprocess.check_output(command, env=env, text=True) == "1\n"
