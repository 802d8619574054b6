"""Detection of corrupt chunks in a run, and repair by clearing the progress of their units.

Units of work make the arrays (`ldmprobe_core.storage.units`); the next run repeats every unit that
is not recorded as complete, with the same result.  Coordinates, ``samples/`` and interventions are
not written again by a run: their corrupt chunks are only reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
import zarr

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage.bookkeeping import (
    CREATED,
    FOLDER,
    read_record,
    record_names,
    unit_of_record,
)
from ldmprobe_core.storage.nodes import consolidated_metadata, dimensions, open_array
from ldmprobe_core.storage.progress import GROUP
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.storage.stores.metadata_cache import invalidate_cache
from ldmprobe_core.storage.units import UNIT_KINDS, UnitKind, kind_of_group
from ldmprobe_core.study.batching import BUFFERS

_Expectation = Callable[[str, tuple[str, ...], tuple[int, ...]], bool]
"""Whether a chunk must exist, by its array's path and dimensions and its chunk index."""


def find_corrupt_chunks(run: Run, array: str = "") -> Iterator[CorruptChunkError]:
    """Read everything that must exist; yield what is missing and what has changed.

    The run's consolidated metadata, written when its groups were created, says which groups and
    arrays there must be; the progress record says which of their chunks.

    Args:
        array: path of one array or group to read; the whole run if empty.

    Raises:
        RunError: the consolidated metadata itself is missing or unreadable.
    """
    laid_out = consolidated_metadata(run.location)
    damaged = list(_damaged_metadata(run, laid_out, array))
    yield from damaged
    unreadable = {chunk.array for chunk in damaged}
    store = run.zarr_store(require_complete=True)
    progress = [path for path in _arrays(laid_out, GROUP) if path not in unreadable]
    corrupt_progress = [
        chunk
        for path in progress
        for chunk in _corrupt_chunks(open_array(store, run.url, path), lambda *_: False)
    ]
    yield from corrupt_progress
    if corrupt_progress or any(path in unreadable for path in _arrays(laid_out, GROUP)):
        return  # without the progress record it is unknown which other chunks must exist
    is_expected = _expectation(run)
    recorded, damaged_records = _recorded_checksums(run)
    if not array:
        yield from damaged_records
    store = run.zarr_store(require_complete=True, recorded=recorded)
    for path in _arrays(laid_out, array):
        if path.partition("/")[0] != GROUP and path not in unreadable:
            yield from _corrupt_chunks(open_array(store, run.url, path), is_expected)


def _recorded_checksums(run: Run) -> tuple[dict[str, bytes], list[CorruptChunkError]]:
    """Checksums by key of the chunks that complete units and the creation wrote.

    Returns:
        the checksums, and the records that are damaged.
    """
    names = [CREATED] if run.location.has(CREATED) else []
    for kind in UNIT_KINDS.values():
        groups = [f"{top}/{name}" for top in kind.groups for name in run.location.folders(top)]
        for group in groups if kind.per_group else [GROUP]:
            for name in record_names(run.location, f"{group}/{kind.progress}"):
                # Skip the old record of a unit that is being repeated: it may have written over
                # its chunks.
                if run.progress_of(group).count(kind, *unit_of_record(name)[1]):
                    names.append(name)
    recorded: dict[str, bytes] = {}
    damaged = []
    for name in names:
        try:
            recorded |= read_record(run.location, name)
        except ValueError:
            damaged.append(CorruptChunkError(run.url, name, "changed"))
    return recorded, damaged


def _arrays(laid_out: dict[str, dict[str, Any]], below: str) -> list[str]:
    """Paths of the arrays at or below a path, in order."""
    return sorted(
        path
        for path, metadata in laid_out.items()
        if metadata["node_type"] == "array" and _is_below(path, below)
    )


def _is_below(path: str, below: str) -> bool:
    return not below or path == below or path.startswith(f"{below}/")


def _damaged_metadata(
    run: Run, laid_out: dict[str, dict[str, Any]], below: str
) -> Iterator[CorruptChunkError]:
    """Groups and arrays whose own zarr.json is missing, or is not what was created."""
    for path, metadata in sorted(laid_out.items()):
        if not _is_below(path, below):
            continue
        key = f"{path}/zarr.json"
        try:
            document = json.loads(run.location.read_bytes(key))
        except UserError:
            yield CorruptChunkError(run.url, key, "missing")
            continue
        except (ValueError, RecursionError):
            document = None
        # Attributes may be added by a reader; shape, chunks and codecs decide what bytes mean.
        if not isinstance(document, dict) or _fixed(document) != _fixed(metadata):
            yield CorruptChunkError(run.url, key, "changed")


def _fixed(metadata: dict[str, Any]) -> dict[str, Any]:
    skipped = ("attributes", "consolidated_metadata")
    return {key: value for key, value in metadata.items() if key not in skipped}


def clear_progress(run: Run, chunks: Iterable[CorruptChunkError]) -> list[CorruptChunkError]:
    """Make the next run write corrupt chunks again, by recording their units as not done.

    Damaged metadata is restored from the run's consolidated copy first.

    Returns:
        the chunks that no unit of a run can write again.
    """
    chunks = list(chunks)
    restored = [chunk for chunk in chunks if chunk.is_metadata]
    if restored:
        laid_out = consolidated_metadata(run.location)
        for chunk in restored:
            document = json.dumps(laid_out[chunk.array], indent=2)
            run.location.write_text(chunk.key, document)
        invalidate_cache(run.url)
        # Chunks below restored metadata could not be looked at before.
        chunks = list(find_corrupt_chunks(run))
    beyond_repair = []
    progress_arrays = {kind.progress for kind in UNIT_KINDS.values()}
    layers: list[str] = []
    for chunk in chunks:
        if chunk.key == CREATED:
            beyond_repair.append(chunk)
            continue
        if chunk.key.startswith(f"{FOLDER}/"):
            array, index = unit_of_record(chunk.key)
            group, _, name = array.rpartition("/")
            run.progress_of(group).set_count(name, *index, count=0)
            continue
        group, _, name = chunk.array.partition("/")
        if group == GROUP and name in progress_arrays:
            run.progress.set_count(name, *chunk.chunk_index, count=0)  # one chunk an element
            continue
        layers = layers or run.probe_inputs
        dims = dimensions(open_array(run.store, run.url, chunk.array))
        unit = unit_of_chunk(chunk.array, dims, chunk.chunk_index, layers)
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
            except RunError:  # not created yet, or itself reported as corrupt
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


def _corrupt_chunks(array: zarr.Array, is_expected: _Expectation) -> Iterator[CorruptChunkError]:
    """Corrupt chunks of an array; a missing chunk counts only if it is expected."""
    dims = dimensions(array)
    for chunk_index in product(*(range(count) for count in array.cdata_shape)):
        expected = is_expected(array.path, dims, chunk_index)
        if not expected and "buffer" in dims:
            continue  # never read, and overwritten by the accumulator's next unit
        try:
            array.blocks[chunk_index]
        except CorruptChunkError as error:
            if error.reason == "changed" or expected:
                yield error
