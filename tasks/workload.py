"""Expected cost of the units of a run, from which the time left is estimated.

The costs are relative to each other; 1 is the denoising of one sample by one step.  The ratios were
measured with the embedded model on two CPU cores.  They matter only until units have ended, whose
own times are used then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ldmprobe_core.pipeline.groups import ACTIVATION_GROUPS, STEP_IMAGES
from ldmprobe_core.pipeline.statistics import run_accumulation_units
from ldmprobe_core.pipeline.units import UNITS
from ldmprobe_core.storage.run import Run
from tasks.references import RunRef
from tasks.time_left import TimeLeft, UnitCost

_STEP_IMAGE = 0.75  # cost of decoding the two images of a step
_PERMUTED = 0.75  # cost of a step of the permuted denoiser
_LABELED_IMAGE = 0.26
_CELL, _CELL_SAMPLE = (
    10.0,
    0.085,
)  # cost of the probes of a layer at a step: fixed, and for each sample
CLOSING = (470.0, 2.4)
"""Cost of the summary and the report: a fixed part (figures), and one for each sample.

With the 240 samples of the embedded study, statistics are about 0.55 of it.
"""

CURVES = (100.0, 0.0)
"""Cost of the class curves at the end of a classify flow: fixed, and for each sample."""

_STAGES = {"accumulate": "tally"}
"""Stage of each kind of unit whose stage is not named after its verb."""


def expect_work(
    ref: RunRef, verbs: Sequence[str], workers: int, closing: tuple[float, float]
) -> TimeLeft:
    """Build the estimate of the time left of a flow, from the units of its run.

    Args:
        ref: reference to the run.
        verbs: kinds of units that the flow carries out, in order.
        workers: number of workers.
        closing: cost of the work after the last unit, a fixed part and one for each sample, such
            as `CLOSING`.
    """
    run = Run(ref.url)
    stages = {}
    for verb in verbs:
        operations = UNITS[verb]
        if not operations.kind.applies_to(run.study):
            continue
        cost, counts = _costs(run, verb), run.progress.counts(operations.kind)
        units = operations.list_units(run)
        if operations.kind.sequential:
            done = [
                bool(counts[int(i)] > int(number)) for i, number in (unit.index for unit in units)
            ]
        else:
            done = [bool(count) for count in counts.ravel()]
        stages[_STAGES.get(verb, verb)] = {
            unit.title: UnitCost(cost(number), is_done)
            for number, (unit, is_done) in enumerate(zip(units, done, strict=True))
        }
    total = closing[0] + closing[1] * run.open("samples").sizes["sample"]
    return TimeLeft(stages, workers, total, time.monotonic())


def _costs(run: Run, verb: str) -> Callable[[int], float]:
    """Return a function from the number of a unit of one kind to its expected cost."""
    study = run.study
    if verb == "probe":
        n_samples = run.open("samples").sizes["sample"]
        return lambda _: _CELL + _CELL_SAMPLE * n_samples
    n_steps = run.open("progress").sizes["step"]
    if verb == "accumulate":
        units = [unit for part in run_accumulation_units(run) for unit in part]
        return lambda number: float(n_steps * sum(len(batch) for batch in units[number]))
    batches = study.batches(run.n_stored)
    n_images = _in_batches(run, STEP_IMAGES, batches) * len(run.read(STEP_IMAGES, "step"))
    if verb == "label":
        return lambda i: _LABELED_IMAGE * float(len(batches[i]) + 2 * n_images[i])
    n_permuted = np.zeros(len(batches))
    if study.controls.untrained is not None:
        group = f"{ACTIVATION_GROUPS['permuted']}/{run.layers[0]}"
        n_permuted = _in_batches(run, group, batches) * n_steps
    return lambda i: float(
        len(batches[i]) * n_steps + _STEP_IMAGE * n_images[i] + _PERMUTED * n_permuted[i]
    )


def _in_batches(run: Run, group: str, batches: Sequence[range]) -> np.ndarray:
    """Count, for each batch, its samples that a group of the run holds."""
    samples = np.sort(run.read(group, "sample"))
    ends = [batch.stop for batch in batches]
    return np.diff(np.searchsorted(samples, [0, *ends]))
