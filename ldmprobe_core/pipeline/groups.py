"""Look-up of samples in Zarr groups that hold only some samples of a run."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.batching import StepImages

ACTIVATION_GROUPS = {"trained": "activations", "permuted": "activations_permuted"}
"""Name of the group in a run that holds the activations of each network.

The networks are the model with its trained weights, and its copy with permuted weights.
"""

STEP_IMAGES = "step_images"
"""Name of the group of step images."""


def samples_in(run: Run, group: str) -> np.ndarray:
    """Read the indices of the samples that a group holds, in ascending order, (n,)."""
    return run.read(group, "sample")


def rows_in(run: Run, group: str, members: range) -> tuple[np.ndarray, slice]:
    """Find the samples of a batch that a Zarr group holds, and their rows in the group.

    Args:
        run: run that holds the group.
        group: path of a group with the dimension ``sample``.
        members: indices of the batch's samples.

    Returns:
        their positions in the batch, (n,), and the slice of the group that they take.
    """
    index = samples_in(run, group)
    start, stop = np.searchsorted(index, [members.start, members.stop])
    return index[start:stop] - members.start, slice(int(start), int(stop))


def step_images_in(run: Run, members: range) -> tuple[StepImages, slice]:
    """Find the samples and steps of a batch with step images, and their rows in the Zarr group."""
    positions, rows = rows_in(run, STEP_IMAGES, members)
    return StepImages(positions, run.read(STEP_IMAGES, "step") - 1), rows


def permuted_rows_in(run: Run, members: range) -> slice | None:
    """Find a batch's rows in the permuted network's activations; None if it has no rows."""
    if run.study.controls.untrained is None:
        return None
    _, rows = rows_in(run, f"{ACTIVATION_GROUPS['permuted']}/{run.layers[0]}", members)
    return rows if rows.stop > rows.start else None
