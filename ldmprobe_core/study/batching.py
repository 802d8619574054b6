"""Sizes in a run's statistics: batches of an accumulation unit, and width of a Gram matrix.

Chunk sizes of arrays are decided in `ldmprobe_core.storage.schema`.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.study.schema import Study

STATISTICS_GROUP = "statistics"
BUFFERS = 2
"""Number of buffers of an accumulator.

One holds the sums of all complete units; the next unit writes its sums to the other.
"""

BATCHES_PER_UNIT = 16
"""Largest number of batches that one accumulation unit adds to the statistics."""


def label_assignments(study: Study, network: str) -> tuple[str, ...]:
    """Return the label assignments in a network's statistics, in the order of label columns.

    If activations are stored as well, the statistics hold true labels only, because controls are
    then fitted to the stored activations.
    """
    return study.assignments(network) if study.capture.keep == "statistics" else ("true",)


def gram_width(study: Study, network: str, channels: int) -> int:
    """Return the width of a cell's Gram matrix: channels, constant, labels of each assignment."""
    return channels + 1 + len(label_assignments(study, network)) * len(study.labels.maps)


def accumulation_units(study: Study, first: int, count: int) -> list[list[list[range]]]:
    """Group the training samples ``first`` to ``count - 1`` by accumulator, unit and batch.

    If only one sample remains for the last batch, it is added to the batch before, because the
    shuffled-label control needs at least two images per batch.

    Returns:
        sample indices of a batch, as a range, by accumulator, unit and batch.
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
