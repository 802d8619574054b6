"""What must exist in a run: the unit of work that writes a chunk, and whether it is complete."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np

from ldmprobe_core.errors import RunError
from ldmprobe_core.storage.nodes import consolidated_metadata, dimensions, open_array
from ldmprobe_core.storage.progress import GROUP
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import (
    ARRAY_DIM,
    EDIT_RECORDS,
    STUDY_KINDS,
    UnitKind,
    is_progress_array,
    kind_of_group,
)
from ldmprobe_core.study.batching import BUFFERS

Expectation = Callable[[str, tuple[str, ...], tuple[int, ...]], bool]
"""Predicate of an array's path, its dimensions and a chunk index: True if it must exist."""

_PROGRESS_COORDINATES = ("batch", "step", "timestep", "layer")
"""Coordinates of the progress record, which are written with it."""

BatchOfChunk = Callable[[str, int], int | None]
"""Function of an array's path and a chunk's position along ``sample`` that gives its batch."""


def batch_finder(run: Run) -> BatchOfChunk:
    """Build a function that returns the batch whose samples a chunk holds."""
    batches: dict[str, list[int]] = {}

    def of_chunks(path: str) -> list[int]:
        """List the batch of each chunk along the dimension ``sample`` of an array."""
        first, last = (open_array(run.store, run.url, one) for one in (path, "images/image"))
        along, group = dimensions(first).index("sample"), path.rpartition("/")[0]
        if f"{group}/sample" not in consolidated_metadata(run.location):
            # This group holds all samples, so the number of a chunk is the number of its batch.
            return list(range(first.cdata_shape[along]))
        chunk = first.chunks[along]
        samples = run.read(group, "sample")[::chunk]
        return [int(sample) // last.chunks[0] for sample in samples]

    def batch_of(path: str, chunk: int) -> int | None:
        if path not in batches:
            try:
                batches[path] = of_chunks(path)
            except RunError:
                # The group's list of samples or its metadata is damaged, so the batch is
                # unknown.  The damaged file itself is reported when it is checked.
                batches[path] = []
        return batches[path][chunk] if chunk < len(batches[path]) else None

    return batch_of


def group_of(path: str) -> str:
    """Return the group of an intervention, such as ``interventions/<name>``, that holds a path."""
    return "/".join(path.split("/")[:2])


def unit_of_chunk(
    path: str,
    dims: tuple[str, ...],
    chunk_index: tuple[int, ...],
    layers: list[str],
    batch_of: BatchOfChunk | None = None,
) -> tuple[UnitKind, tuple[int, ...]] | None:
    """Return the kind and index of the unit of work that writes a chunk; None if none does.

    All units of an accumulator share one index, since each adds to the result of the one before.

    Args:
        path: path of the array.
        dims: names of the array's dimensions.
        chunk_index: position of the chunk in the array's chunk grid.
        layers: names of all probe inputs, in order.
        batch_of: function of the array's path and a chunk's position along ``sample`` that gives
            the batch to which the chunk belongs, or None if the batch is unknown; None numbers
            chunks and batches alike.
    """
    kind = kind_of_group(path)
    if kind is None or not kind.writes(dims) or is_progress_array(path):
        # No unit of work writes this chunk: it was written when the run, or the group of an
        # intervention, was created.
        return None
    numbered = ARRAY_DIM["batch"]
    if batch_of is not None and "batch" in kind.dims and numbered in dims and not kind.per_group:
        axis = dims.index(numbered)
        batch = batch_of(path, chunk_index[axis])
        if batch is None:
            return None
        chunk_index = (*chunk_index[:axis], batch, *chunk_index[axis + 1 :])
    return kind, kind.index_of_chunk(path, dims, chunk_index, layers)


def must_be_marked(run: Run, path: str) -> bool:
    """Return whether all units of a progress array must be complete: their results have a summary.

    The summary of a run or of an intervention is written after its last unit is complete, and it is
    removed before a unit is marked as incomplete.
    """
    group, _, name = path.rpartition("/")
    if group == GROUP:
        required = {kind.progress for kind in STUDY_KINDS}
        return name in required and run.location.has("summary.json")
    return run.location.has(f"{EDIT_RECORDS}/{group.partition('/')[2]}/summary.json")


def is_written_at_creation(path: str, dims: tuple[str, ...]) -> bool:
    """Return whether an array is written when its group is created, and not by units of work.

    Args:
        path: path of the array.
        dims: names of the array's dimensions.
    """
    group, _, name = path.rpartition("/")
    if group == GROUP:
        # Other arrays of this group belong to kinds of units, of which this process may know only
        # some: the others are those of extensions that it has not loaded.
        return name in _PROGRESS_COORDINATES
    kind = kind_of_group(path)
    return not is_progress_array(path) and (kind is None or not kind.writes(dims))


def _is_created(run: Run, group: str) -> bool:
    """Return whether the creation of an intervention's group is complete, as its records show."""
    records = f"{EDIT_RECORDS}/{group.partition('/')[2]}"
    return any(run.location.has(f"{records}/{n}.json") for n in ("intervention", "summary"))


def expectation(run: Run) -> Expectation:
    """Build a function that tells from the progress record whether a chunk must exist.

    The function reads the progress record only for chunks outside of the group ``progress``.
    """
    batch_of, are_marked = batch_finder(run), cache(partial(must_be_marked, run))
    is_created = cache(partial(_is_created, run))
    counts_by_group: dict[str, np.ndarray] = {}

    def counts(kind: UnitKind, path: str) -> np.ndarray:
        group = group_of(path) if kind.per_group else GROUP
        key = f"{group}/{kind.progress}"
        if key not in counts_by_group:
            try:
                counts_by_group[key] = run.progress_of(group).counts(kind)
            except RunError:
                # The progress array cannot be opened: the creation of its group is unfinished, or
                # its metadata was already reported as corrupt.  No chunk is expected then.
                counts_by_group[key] = np.zeros(0, int)
        return counts_by_group[key]

    def is_expected(path: str, dims: tuple[str, ...], chunk_index: tuple[int, ...]) -> bool:
        if is_progress_array(path):
            return are_marked(path)
        if path.partition("/")[0] == GROUP:
            return is_written_at_creation(path, dims)
        unit = unit_of_chunk(path, dims, chunk_index, run.probe_inputs, batch_of)
        if unit is None:
            kind = kind_of_group(path)
            if kind is not None and not kind.per_group and kind.writes(dims):
                # A unit of work writes this chunk, but the batch of the unit cannot be determined,
                # because the list of the group's samples is damaged.
                return False
            # This chunk holds coordinates or targets, which are written when the group is created,
            # so it must exist.  It may be missing only in the group of an intervention without
            # records and complete units, because the process may have been interrupted while it
            # created the group.
            if kind is None or not kind.per_group:
                return True
            return is_created(group_of(path)) or bool(counts(kind, path).any())
        recorded = counts(unit[0], path)
        if not recorded.size:
            return False
        count = int(recorded[unit[1]])
        if "buffer" in dims and count % BUFFERS != chunk_index[dims.index("buffer")]:
            # Each accumulator has two buffers, and only the one with the last complete sums is
            # read.  This chunk is of the other buffer, which an interrupted unit may have written
            # in part.
            return False
        return count > 0

    return is_expected
