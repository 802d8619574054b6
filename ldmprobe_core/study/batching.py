"""Layout of a run's statistics: batches of an accumulation unit, width of a cell's Gram matrix.

Chunk sizes of arrays are decided in `ldmprobe_core.storage.schema`.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.study.schema import Study

STATISTICS_GROUP = "statistics"
BUFFERS = 2
"""Buffers of an accumulator, the active one and the next."""

BATCHES_PER_UNIT = 16
"""Most batches that one accumulation unit adds to the statistics."""


def label_assignments(study: Study, network: str) -> tuple[str, ...]:
    """Label assignments in a network's statistics, in the order of their label columns.

    Only true labels if activations are stored as well: controls are then fitted to those.
    """
    return study.assignments(network) if study.capture.keep == "statistics" else ("true",)


def gram_width(study: Study, network: str, channels: int) -> int:
    """Width of a cell's Gram matrix: channels, the constant, and each assignment's labels."""
    return channels + 1 + len(label_assignments(study, network)) * len(study.labels.maps)


def accumulation_units(study: Study, first: int, count: int) -> list[list[list[range]]]:
    """Batches of the training samples ``first`` to ``count - 1``, by accumulator and unit.

    A last batch of one sample is joined to the one before it, because the shuffled-label control
    needs at least two images a batch.
    """
    size = study.sampling.batch
    starts = list(range(first, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
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
