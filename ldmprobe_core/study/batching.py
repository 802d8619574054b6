"""Sizes in a run's statistics: batches of an accumulation unit, and width of a Gram matrix.

Chunk sizes of arrays are decided in `ldmprobe_core.storage.schema`.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.study.conditions import LabelColumn
from ldmprobe_core.study.schema import Study

STATISTICS_GROUP = "statistics"
BUFFERS = 2
"""Number of buffers of an accumulator.

One holds the sums of all complete units; the next unit writes its sums to the other.
"""

BATCHES_PER_UNIT = 16
"""Largest number of batches that one accumulation unit adds to the statistics."""


MOST_POSITIONS = 16
"""Largest number of positions along one axis of the token grid."""


def summed_columns(study: Study, network: str) -> tuple[LabelColumn, ...]:
    """Return the label columns whose sums the statistics of one network contain.

    If activations are stored as well, the statistics hold true labels only, because controls are
    then fitted to the stored activations.
    """
    columns = study.label_columns(network)
    if study.capture.keep == "statistics":
        return columns
    return tuple(column for column in columns if column.assignment == "true")


def gram_width(study: Study, network: str, channels: int) -> int:
    """Return the width of a cell's Gram matrix: channels, a constant, and the label columns."""
    return channels + 1 + len(summed_columns(study, network))


def n_positions(grid: tuple[int, int]) -> int:
    """Return the number of positions (blocks of tokens) of a grid, which are summed separately."""
    return min(grid[0], MOST_POSITIONS) * min(grid[1], MOST_POSITIONS)


def accumulation_units(study: Study, first: int, count: int) -> list[list[list[range]]]:
    """Group the samples with indices ``first`` to ``count - 1`` by accumulator, unit and batch.

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
