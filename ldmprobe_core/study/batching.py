"""Division of samples into units of work, and choice of samples for step images and controls.

Step images are decoded for a few samples, and the permuted denoiser runs on some of the batches.
Both choices depend on the study alone.  Chunk sizes of arrays are decided in
`ldmprobe_core.storage.schema`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.conditions import LabelColumn
from ldmprobe_core.study.layers import CLEAN_PIXELS
from ldmprobe_core.study.samples import Sample, n_stored_samples
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.splits import SPLITS

STATISTICS_GROUP = "statistics"
BUFFERS = 2
"""Number of buffers of an accumulator.

One holds the sums of all complete units; the next unit writes its sums to the other.
"""

BATCHES_PER_UNIT = 16
"""Largest number of batches that one accumulation unit adds to the statistics."""


MOST_POSITIONS = 16
"""Largest number of positions along one axis of the token grid."""


ENOUGH_SHUFFLES = 10**9
"""Number of different permutations of labels from which on they are not counted exactly."""


def summed_columns(study: Study, network: str) -> tuple[LabelColumn, ...]:
    """Return the label columns in a network's Gram matrices, beside its activation channels.

    If activations are stored as well, the statistics hold true labels only, because controls are
    then fitted to the stored activations.
    """
    columns = study.label_columns(network)
    if study.capture.keep == "statistics":
        return columns
    return tuple(column for column in columns if column.assignment == "true")


def gram_width(study: Study, network: str, channels: int) -> int:
    """Return the width of a layer's Gram matrix: channels, one constant, and label columns."""
    return channels + 1 + len(summed_columns(study, network))


def n_positions(grid: tuple[int, int]) -> int:
    """Return the number of positions, which are blocks of the token grid with separate sums."""
    return min(grid[0], MOST_POSITIONS) * min(grid[1], MOST_POSITIONS)


def accumulation_units(study: Study, first: int, count: int) -> list[list[list[range]]]:
    """Divide samples ``first`` to ``count - 1`` among accumulators, units of work and batches.

    If only one or two samples remain for the last batch, they are added to the batch before,
    because the shuffled-label control needs at least three images per batch to permute.

    Returns:
        range of the sample indices of a batch, by accumulator, unit and batch.
    """
    size = study.sampling.batch
    starts = list(range(first, count, size))
    if len(starts) > 1 and count - starts[-1] < 3:
        starts.pop()
    batches = [range(a, b) for a, b in zip(starts, [*starts[1:], count], strict=True)]
    parts = np.array_split(
        np.arange(len(batches)), min(study.capture.accumulators, len(batches)) or 1
    )
    return [
        [
            [batches[i] for i in part[a : a + BATCHES_PER_UNIT]]
            for a in range(0, len(part), BATCHES_PER_UNIT)
        ]
        for part in parts
    ]


def different_shuffles(study: Study, samples: list[Sample]) -> int:
    """Count the different permutations of training labels that shuffled labels are drawn from.

    The labels of n samples, those of a batch if only sums are kept, are permuted cyclically
    (`ldmprobe_core.study.conditions.derange`), for which there are (n - 1)! different ways.

    Returns:
        the number, or `ENOUGH_SHUFFLES` if it is larger.
    """
    sizes = [sum(sample.split == "train" for sample in samples)]
    if study.capture.keep == "statistics":
        units = accumulation_units(study, n_stored_samples(samples, study), len(samples))
        sizes = [len(batch) for part in units for unit in part for batch in unit]
    count = 1
    for size in sizes:
        # The factorial of a large number takes long to compute.
        count *= factorial(min(max(size - 1, 0), 13))
        if count > ENOUGH_SHUFFLES:
            return ENOUGH_SHUFFLES
    return count


@dataclass(frozen=True)
class StepImages:
    """Indices of the samples of a batch and of the sampler steps for which images are decoded.

    It is false if it has no samples.

    Attributes:
        samples: positions of samples in the batch, (n,).
        steps: indices of steps (from 0), (n,) ascending, the last step included.
    """

    samples: np.ndarray
    steps: np.ndarray

    def __bool__(self) -> bool:
        return len(self.samples) > 0


def step_image_samples(study: Study, samples: list[Sample]) -> np.ndarray:
    """Choose at random the samples for which images are decoded at sampler steps.

    They are drawn at random from the scored part and from the training samples.  If the study has
    the control ``clean_pixels``, validation samples are drawn in the same share as training
    samples, because the control's probes are chosen on them.

    Args:
        study: the study.
        samples: all of its samples.

    Returns:
        indices of stored samples, (n,) ascending.
    """
    settings = study.trajectory
    split = np.array([sample.split for sample in samples[: n_stored_samples(samples, study)]])
    rng = np.random.default_rng([study.prompts.seed, len(samples)])
    parts = {name: rng.permutation(np.flatnonzero(split == name)) for name in SPLITS}
    scored = parts["test"]
    if settings.of == "heldout":
        scored = rng.permutation(np.concatenate([parts["validation"], parts["test"]]))
    size = len(scored) if settings.samples == "all" else settings.samples
    train = parts["train"][: settings.training]
    chosen = [scored[:size], train]
    if CLEAN_PIXELS in study.input_controls:
        share = len(train) / max(len(parts["train"]), 1)
        chosen.append(parts["validation"][: int(np.ceil(share * len(parts["validation"])))])
    return np.unique(np.concatenate(chosen))


def step_image_steps(study: Study, steps: int) -> np.ndarray:
    """Return the indices (from 0) of the sampler steps at which images are decoded.

    Args:
        study: the study.
        steps: number of sampler steps.

    Returns:
        indices in ascending order, (n,).

    Raises:
        UserError: a step does not exist, or the last step is missing.
    """
    chosen = study.trajectory.steps
    if chosen == "all":
        return np.arange(steps)
    if not chosen or chosen[-1] != steps:
        raise UserError(
            f"trajectory.steps: the last step listed is {chosen[-1] if chosen else 'missing'}, but "
            f"the sampler has {steps} steps. Fix: end the list with {steps}, where all curves "
            "end, or set it to all"
        )
    return np.array(chosen) - 1


def permuted_samples(study: Study, samples: list[Sample]) -> np.ndarray:
    """Choose complete batches of samples on which the denoiser with permuted weights runs.

    Batches are added until they have as many samples as the control asks for
    (``controls.permuted_weights.samples``, or those of ``random_weights``), and samples of every
    split.  Each is the batch with which the numbers by split come closest to the proportions of all
    samples.

    Args:
        study: the study.
        samples: all of its samples, in the order of their indices.

    Returns:
        indices of the samples, (n,) ascending; empty if the study has no such control.
    """
    control = study.controls.untrained
    if control is None or not samples:
        return np.arange(0)
    stored = n_stored_samples(samples, study)
    batches = study.batches(stored)
    if stored < len(samples):
        units = accumulation_units(study, stored, len(samples))
        batches += [batch for part in units for unit in part for batch in unit]
    number = np.array([SPLITS.index(sample.split) for sample in samples])
    counts = np.array(
        [np.bincount(number[b.start : b.stop], minlength=len(SPLITS)) for b in batches]
    )
    total = counts.sum(0)
    wanted = min(control.samples, len(samples))
    target = total * wanted / len(samples)
    # Of equally good batches, the first in this random order is taken, not the first in the order
    # of the prompts, because a list of prompts may be sorted.
    left = list(np.random.default_rng([study.prompts.seed, len(batches)]).permutation(len(batches)))
    chosen: list[int] = []
    reached = np.zeros_like(total)
    while reached.sum() < wanted or (reached[total > 0] == 0).any():
        distance = np.square(reached + counts[left] - target).sum(1)
        if reached.sum() >= wanted:
            # Enough samples are chosen, but some splits have none of them.  Take the batch with the
            # most samples of these splits.
            lacking = (total > 0) & (reached == 0)
            distance = -counts[left][:, lacking].sum(1)
        best = left.pop(int(distance.argmin()))
        chosen.append(best)
        reached = reached + counts[best]
    return np.sort(np.concatenate([np.arange(batches[i].start, batches[i].stop) for i in chosen]))
