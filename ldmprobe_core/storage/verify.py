"""Detection of corrupt chunks in a run, and repair by repeating the units that wrote them.

Each chunk is written by one unit of work (`ldmprobe_core.storage.units`).  To repair a chunk, its
unit is recorded as not complete; the next run then repeats the unit, with the same result.  A run
does not rewrite coordinates, ``samples/`` and interventions, so their corrupt chunks are only
reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import zarr

from ldmprobe_core.errors import LdmprobeError, RunError, UserError
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
from ldmprobe_core.storage.stores.checksum_store import (
    NOT_REGULAR,
    CorruptChunkError,
    fixed_metadata,
)
from ldmprobe_core.storage.stores.metadata_cache import invalidate_cache
from ldmprobe_core.storage.stores.regular_files import NotRegularError, remove_irregular
from ldmprobe_core.storage.units import (
    ARRAY_DIM,
    EDIT_RECORDS,
    UNIT_KINDS,
    UnitKind,
    is_progress_array,
    kind_of_group,
)
from ldmprobe_core.study.batching import BUFFERS

_Expectation = Callable[[str, tuple[str, ...], tuple[int, ...]], bool]
"""Predicate of an array's path, its dimensions and a chunk index: True if it must exist."""

BatchOfChunk = Callable[[str, int], int | None]
"""Function of an array's path and a chunk's position along ``sample`` that gives its batch."""


def find_corrupt_chunks(run: Run, array: str = "") -> Iterator[CorruptChunkError]:
    """Read all chunks and metadata of a run, and yield an error for each corrupt or missing one.

    The run's consolidated metadata, written when its groups were created, lists the groups and
    arrays that must exist.  The progress record shows which of their chunks must exist.

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
        # The progress record, which tells what other chunks must exist, is damaged itself.  The
        # other chunks can therefore be checked only after its repair.
        return
    is_expected = _expectation(run)
    recorded, damaged_records = _recorded_checksums(run)
    if not array:
        yield from damaged_records
    store = run.zarr_store(require_complete=True, recorded=recorded)
    for path in _arrays(laid_out, array):
        if path.partition("/")[0] != GROUP and path not in unreadable:
            yield from _corrupt_chunks(open_array(store, run.url, path), is_expected)


def _recorded_checksums(run: Run) -> tuple[dict[str, bytes], list[CorruptChunkError]]:
    """Read the chunk checksums recorded by complete units of work and at the run's creation.

    Returns:
        the checksums by key, and an error for each damaged record.
    """
    names = [CREATED] if run.location.has(CREATED) else []
    for kind in UNIT_KINDS.values():
        groups = [f"{top}/{name}" for top in kind.groups for name in run.location.folders(top)]
        for group in groups if kind.per_group else [GROUP]:
            records = list(record_names(run.location, f"{group}/{kind.progress}"))
            completed = run.progress_of(group).completed(kind) if records else np.zeros(0, bool)
            units = set(map(tuple, np.argwhere(completed).tolist()))
            # A unit with recorded checksums that is incomplete is being repeated.  It may have
            # overwritten some of its chunks, so these checksums no longer apply.
            names += [name for name in records if unit_of_record(name)[1] in units]
    recorded: dict[str, bytes] = {}
    damaged = []
    for name in names:
        try:
            recorded |= read_record(run.location, name)
        except ValueError:
            damaged.append(CorruptChunkError(run.url, name, "changed"))
    return recorded, damaged


def _arrays(laid_out: dict[str, dict[str, Any]], below: str) -> list[str]:
    """Return the sorted paths of the arrays at or below a path of the run."""
    return sorted(
        path
        for path, metadata in laid_out.items()
        if metadata["node_type"] == "array" and _is_below(path, below)
    )


def _is_below(path: str, below: str) -> bool:
    """Return whether a path is equal to or below another one."""
    return not below or path == below or path.startswith(f"{below}/")


def _damaged_metadata(
    run: Run, laid_out: dict[str, dict[str, Any]], below: str
) -> Iterator[CorruptChunkError]:
    """Yield an error for each group or array whose zarr.json is missing or has changed."""
    for path, metadata in sorted(laid_out.items()):
        if not _is_below(path, below):
            continue
        key = f"{path}/zarr.json"
        try:
            document = json.loads(run.location.read_bytes(key))
        except UserError:
            yield CorruptChunkError(run.url, key, "missing")
            continue
        except NotRegularError:
            yield CorruptChunkError(run.url, key, NOT_REGULAR)
            continue
        except (ValueError, RecursionError):
            document = None
        if fixed_metadata(document) != fixed_metadata(metadata):
            yield CorruptChunkError(run.url, key, "changed")


def _beyond_remedy(run: Run, chunks: list[CorruptChunkError]) -> list[CorruptChunkError]:
    """Remove pipes, links and empty folders at chunks' paths; return errors left to the user."""
    irregular = [chunk for chunk in chunks if chunk.reason == NOT_REGULAR]
    stuck = [chunk for chunk in irregular if not remove_irregular(run.location.path(chunk.key))]
    contradictory = [
        chunk for chunk in chunks if chunk.is_metadata and _contradicts(run, chunk.key)
    ]
    return stuck or contradictory


def _contradicts(run: Run, key: str) -> bool:
    """Return whether a zarr.json that was reported as corrupt is readable.

    If it is readable, its copy in the consolidated metadata may be the damaged one instead.
    """
    try:
        document = json.loads(run.location.read_bytes(key))
    except (LdmprobeError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("node_type") in ("group", "array")


class Repair(NamedTuple):
    """What `clear_progress` did about corrupt chunks.

    Attributes:
        units: units that it marked as incomplete: group and name of the progress array, and index.
        beyond_repair: the chunks that cannot be repaired, because no unit of a run writes them,
            because a folder with files is in their place, or because the metadata contradicts its
            copy.
    """

    units: list[tuple[str, str, tuple[int, ...]]]
    beyond_repair: list[CorruptChunkError]

    @property
    def of_run(self) -> int:
        """Number of marked units that the next run repeats."""
        return sum(group == GROUP for group, _, _ in self.units)

    @property
    def interventions(self) -> list[str]:
        """Names of the interventions that have marked units, which `ldmprobe intervene` repeats."""
        groups = dict.fromkeys(group for group, _, _ in self.units if group != GROUP)
        return [group.partition("/")[2] for group in groups]


def clear_progress(run: Run, chunks: Iterable[CorruptChunkError]) -> Repair:
    """Mark the units that wrote corrupt chunks as incomplete, so that the next run repeats them.

    Damaged metadata of groups and arrays is first restored from the run's consolidated copy.  If
    both are readable but differ, either may be the damaged one, and nothing is repaired.

    A run with a summary counts as finished, and so does an intervention.  The summary is therefore
    removed before the first of its units is marked, so that an interruption leaves an unfinished
    run.  It stays if none of its units is marked.
    """
    chunks = list(chunks)
    if beyond_repair := _beyond_remedy(run, chunks):
        return Repair([], beyond_repair)
    restored = [chunk for chunk in chunks if chunk.is_metadata]
    if restored:
        laid_out = consolidated_metadata(run.location)
        for chunk in restored:
            document = json.dumps(laid_out[chunk.array], indent=2)
            run.location.write_text(chunk.key, document)
        invalidate_cache(run.url)
        # While the metadata of an array was damaged, its chunks could not be checked.  Now that
        # the metadata is restored, the check is repeated for all chunks.
        chunks = list(find_corrupt_chunks(run))
        if beyond_repair := _beyond_remedy(run, chunks):
            return Repair([], beyond_repair)
    batch_of = _batch_finder(run)
    marks = {chunk.key: _mark_of(run, chunk, batch_of) for chunk in chunks}
    units = list(dict.fromkeys(mark for mark in marks.values() if mark is not None))
    repair = Repair(units, [chunk for chunk in chunks if marks[chunk.key] is None])
    if repair.of_run:
        run.location.remove("summary.json")
    for intervention in repair.interventions:
        run.location.remove(f"{EDIT_RECORDS}/{intervention}/summary.json")
    for group, name, index in units:
        run.progress_of(group).clear(name, *index)
    return repair


def _mark_of(
    run: Run, chunk: CorruptChunkError, batch_of: BatchOfChunk
) -> tuple[str, str, tuple[int, ...]] | None:
    """Return where the unit that wrote a chunk is recorded: group, progress array and index.

    None stands for a chunk that no unit of the run writes.
    """
    if chunk.key == CREATED:
        return None
    if chunk.key.startswith(f"{FOLDER}/"):
        array, index = unit_of_record(chunk.key)
        group, _, name = array.rpartition("/")
        return group, name, index
    group, _, name = chunk.array.partition("/")
    if is_progress_array(chunk.array) and group == GROUP:
        # Each chunk of a progress array holds one element.  The index of the chunk is therefore the
        # index of the unit of work whose progress the chunk records.
        return group, name, chunk.chunk_index
    if group == GROUP:
        # The coordinates of the progress record, by which units are found, are written with it.
        return None
    dims = dimensions(open_array(run.store, run.url, chunk.array))
    unit = unit_of_chunk(chunk.array, dims, chunk.chunk_index, run.probe_inputs, batch_of)
    if unit is None or unit[0].per_group:
        return None
    return GROUP, unit[0].progress, unit[1]


def _batch_finder(run: Run) -> BatchOfChunk:
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


def _expectation(run: Run) -> _Expectation:
    """Build a function that tells from the progress record whether a chunk must exist."""
    layers, batch_of = run.probe_inputs, _batch_finder(run)
    counts_by_group: dict[str, np.ndarray] = {}

    def counts(kind: UnitKind, path: str) -> np.ndarray:
        group = "/".join(path.split("/")[:2]) if kind.per_group else GROUP
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
        unit = unit_of_chunk(path, dims, chunk_index, layers, batch_of)
        if unit is None:
            kind = kind_of_group(path)
            if kind is not None and not kind.per_group and kind.writes(dims):
                # A unit of work writes this chunk, but the batch of the unit cannot be determined,
                # because the list of the group's samples is damaged.
                return False
            # This chunk holds coordinates, which are written when the group is created, so it must
            # exist.  It may be missing only in the group of an intervention of which no unit is
            # complete, because the process may have been interrupted while it created the group.
            return kind is None or not kind.per_group or bool(counts(kind, path).any())
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


def _corrupt_chunks(array: zarr.Array, is_expected: _Expectation) -> Iterator[CorruptChunkError]:
    """Yield an error for each chunk of an array that is corrupt, or missing but required."""
    dims = dimensions(array)
    for chunk_index in product(*(range(count) for count in array.cdata_shape)):
        expected = is_expected(array.path, dims, chunk_index)
        if not expected and "buffer" in dims:
            # Only one of an accumulator's two buffers is read.  This chunk is of the other one,
            # which the next unit overwrites, so damage in it does not matter.
            continue
        try:
            array.blocks[chunk_index]
        except CorruptChunkError as error:
            if error.reason != "missing" or expected:
                yield error
