"""Detection of corrupt chunks in a run, and repair by clearing the progress of their units.

Units of work make the arrays (`ldmprobe_core.storage.units`); the next run repeats every unit that
is not recorded as complete, with the same result.  Coordinates, ``samples/`` and interventions are
not written again by a run: their corrupt chunks are only reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product

import numpy as np
import zarr

from ldmprobe_core.storage.checksum_store import CorruptChunkError
from ldmprobe_core.storage.progress import GROUP
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import UNIT_KINDS, UnitKind, kind_of_group
from ldmprobe_core.study.batching import BUFFERS

_Expectation = Callable[[str, tuple[str, ...], tuple[int, ...]], bool]
"""Whether a chunk must exist, by its array's path and dimensions and its chunk index."""


def find_corrupt_chunks(run: Run, array: str = "") -> Iterator[CorruptChunkError]:
    """Read every chunk that must exist; yield the missing ones and those with a wrong checksum.

    Args:
        array: path of one array or group to read; the whole run if empty.
    """
    root = zarr.open_group(run.zarr_store(require_complete=True), mode="r", use_consolidated=False)
    corrupt_progress = list(_corrupt_below(root[GROUP], lambda *_: False))
    yield from corrupt_progress
    if corrupt_progress:
        return  # without the progress record it is unknown which other chunks must exist
    is_expected = _expectation(run)
    members = [(array, root[array])] if array else root.members()
    for name, member in members:
        if name.partition("/")[0] != GROUP:
            yield from _corrupt_below(member, is_expected)


def clear_progress(run: Run, chunks: Iterable[CorruptChunkError]) -> list[CorruptChunkError]:
    """Record the units that wrote corrupt chunks as not done, so that the next run repeats them.

    Returns:
        the chunks that no unit of a run can write again.
    """
    beyond_repair = []
    root = zarr.open_group(run.store, mode="r", use_consolidated=False)
    progress_arrays = {kind.progress for kind in UNIT_KINDS.values()}
    layers: list[str] = []
    for chunk in chunks:
        group, _, name = chunk.array.partition("/")
        if group == GROUP and name in progress_arrays:
            run.progress.set_count(name, *chunk.chunk_index, count=0)  # one chunk an element
            continue
        layers = layers or run.probe_inputs
        array = root[chunk.array]
        assert isinstance(array, zarr.Array)
        unit = unit_of_chunk(chunk.array, _dims(array), chunk.chunk_index, layers)
        if unit is None or unit[0].per_group:
            beyond_repair.append(chunk)
        else:
            run.progress.clear(unit[0], *unit[1])
    return beyond_repair


def unit_of_chunk(
    path: str, dims: tuple[str, ...], chunk_index: tuple[int, ...], layers: list[str]
) -> tuple[UnitKind, tuple[int, ...]] | None:
    """Kind and progress index of the unit that writes a chunk; None if no unit does.

    All units of an accumulator have one index, since each adds to the result of the last.

    Args:
        path: of the array.
        dims: names of the array's dimensions.
        chunk_index: of the chunk in the array's chunk grid.
        layers: everything that is probed, in order.
    """
    kind = kind_of_group(path)
    if kind is None or len(dims) < 2 or path.rpartition("/")[2] == kind.progress:
        return None  # one-dimensional arrays are coordinates
    return kind, kind.index_of_chunk(path, dims, chunk_index, layers)


def _expectation(run: Run) -> _Expectation:
    """Rule that tells which chunks must exist, from the run's current progress record."""
    layers = run.probe_inputs
    counts_by_group: dict[str, np.ndarray] = {}

    def counts(kind: UnitKind, path: str) -> np.ndarray:
        group = "/".join(path.split("/")[:2]) if kind.per_group else GROUP
        key = f"{group}/{kind.progress}"
        if key not in counts_by_group:
            try:
                counts_by_group[key] = run.progress_of(group).counts(kind)
            except (KeyError, CorruptChunkError):  # not created yet; or itself reported as corrupt
                counts_by_group[key] = np.zeros(0, int)
        return counts_by_group[key]

    def is_expected(path: str, dims: tuple[str, ...], chunk_index: tuple[int, ...]) -> bool:
        unit = unit_of_chunk(path, dims, chunk_index, layers)
        if unit is None:
            kind = kind_of_group(path)
            # A group that was being created when its process ended may lack coordinates.
            return kind is None or not kind.per_group or bool(counts(kind, path).any())
        recorded = counts(unit[0], path)
        if not recorded.size:
            return False
        count = int(recorded[unit[1]])
        if "buffer" in dims and count % BUFFERS != chunk_index[dims.index("buffer")]:
            return False  # the inactive one of the two buffers
        return count > 0

    return is_expected


def _corrupt_below(
    node: zarr.Group | zarr.Array, is_expected: _Expectation
) -> Iterator[CorruptChunkError]:
    """Corrupt chunks below a node; a missing chunk counts only if it is expected."""
    if isinstance(node, zarr.Group):
        for _, member in node.members():
            yield from _corrupt_below(member, is_expected)
        return
    for chunk_index in product(*(range(count) for count in node.cdata_shape)):
        expected = is_expected(node.path, _dims(node), chunk_index)
        if not expected and "buffer" in _dims(node):
            continue  # never read, and overwritten by the accumulator's next unit
        try:
            node.blocks[chunk_index]
        except CorruptChunkError as error:
            if error.reason == "changed" or expected:
                yield error


def _dims(array: zarr.Array) -> tuple[str, ...]:
    names = array.metadata.dimension_names  # type: ignore[union-attr]
    assert names is not None, "every array of a run names its dimensions"
    return tuple(str(name) for name in names)
