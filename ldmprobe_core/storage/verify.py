"""Detection of corrupt chunks in a run, and repair by repeating the units that wrote them.

Each chunk is written by one unit of work (`ldmprobe_core.storage.units`).  To repair a chunk, its
unit is recorded as not complete; the next run then repeats the unit, with the same result.  A run
does not rewrite coordinates, ``samples/`` and the targets of interventions, so their corrupt chunks
are only reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import zarr

from ldmprobe_core.errors import LdmprobeError, UserError
from ldmprobe_core.storage.bookkeeping import (
    CREATED,
    FOLDER,
    unit_of_record,
)
from ldmprobe_core.storage.nodes import (
    consolidated_metadata,
    dimensions,
    open_array,
    require_log_snr,
)
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
    EDIT,
    EDIT_RECORDS,
    is_progress_array,
)
from ldmprobe_core.storage.verification.expected import (
    BatchOfChunk,
    Expectation,
    batch_finder,
    expectation,
    group_of,
    unit_of_chunk,
)
from ldmprobe_core.storage.verification.records import record_creation, recorded_checksums


def find_corrupt_chunks(run: Run, array: str = "") -> Iterator[CorruptChunkError]:
    """Read all chunks and metadata of a run, and yield an error for each corrupt or missing one.

    The run's consolidated metadata, written when its groups were created, lists the groups and
    arrays that must exist.  The progress record shows which of their chunks must exist.

    Args:
        array: path of one array or group to read; the whole run if empty.

    Raises:
        RunError: the consolidated metadata itself is missing or unreadable, or an attribute of the
            root group is damaged.
    """
    laid_out = consolidated_metadata(run.location)
    if steps := laid_out.get(f"{GROUP}/step", {}).get("shape"):
        require_log_snr(run.url, run.attributes, steps[0])
    damaged = list(_damaged_metadata(run, laid_out, array))
    yield from damaged
    unreadable = {chunk.array for chunk in damaged}
    store, is_expected = run.zarr_store(require_complete=True), expectation(run)
    progress = [path for path in _arrays(laid_out, GROUP) if path not in unreadable]
    corrupt_progress = [
        chunk
        for path in progress
        for chunk in _corrupt_chunks(open_array(store, run.url, path), is_expected)
    ]
    yield from corrupt_progress
    if corrupt_progress or any(path in unreadable for path in _arrays(laid_out, GROUP)):
        # The progress record, which tells what other chunks must exist, is damaged itself.  The
        # other chunks can therefore be checked only after its repair.
        return
    recorded, damaged_records = recorded_checksums(run)
    if not array:
        yield from damaged_records
    store = run.zarr_store(require_complete=True, recorded=recorded)
    for path in _arrays(laid_out, array):
        if path.partition("/")[0] != GROUP and path not in unreadable:
            yield from _corrupt_chunks(open_array(store, run.url, path), is_expected)


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


def _is_misnamed(run: Run, laid_out: dict[str, dict[str, Any]], damaged: set[str]) -> bool:
    """Return whether the consolidated metadata lists a group or array under a wrong path.

    There is then nothing at the listed path, and an unlisted node elsewhere has the same metadata.
    """
    lost = [path for path in damaged if not run.location.has(f"{path}/zarr.json")]
    contents = [_content(laid_out[path]) for path in lost]
    return bool(lost) and any(_content(node) in contents for node in _unlisted_nodes(run, laid_out))


def _content(document: dict[str, Any]) -> tuple[Any, Any]:
    """Return what a zarr.json says of its group or array alone."""
    return fixed_metadata(document), document.get("attributes")


def _unlisted_nodes(run: Run, laid_out: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the metadata of groups and arrays in listed groups that are not listed themselves.

    Interventions are left out, since one whose creation was interrupted is not listed.
    """
    groups = {path for path, node in laid_out.items() if node["node_type"] == "group"}
    for group in ("", *sorted(groups - set(EDIT.groups))):
        for name in run.location.folders(group):
            path = f"{group}/{name}" if group else name
            if path in laid_out:
                continue
            try:
                document = json.loads(run.location.read_bytes(f"{path}/zarr.json"))
            except (LdmprobeError, ValueError, RecursionError):
                continue
            if isinstance(document, dict):
                yield document


class Repair(NamedTuple):
    """What `clear_progress` did about corrupt chunks.

    Attributes:
        units: units that it marked as incomplete: group and name of the progress array, and index.
        beyond_repair: the chunks that cannot be repaired, because no unit of a run writes them,
            because a folder with files is in their place, because the metadata contradicts its
            copy, or because the copy lists it under a wrong path (``zarr.json``).
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
    both are readable but differ, either may be the damaged one, and nothing is repaired.  The
    same holds if the copy lists metadata under a wrong path.

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
        if _is_misnamed(run, laid_out, {chunk.array for chunk in restored}):
            return Repair([], [CorruptChunkError(run.url, "zarr.json", "changed")])
        for chunk in restored:
            document = json.dumps(laid_out[chunk.array], indent=2)
            run.location.write_text(chunk.key, document)
        invalidate_cache(run.url)
        # While the metadata of an array was damaged, its chunks could not be checked.  Now that
        # the metadata is restored, the check is repeated for all chunks.
        chunks = list(find_corrupt_chunks(run))
        if beyond_repair := _beyond_remedy(run, chunks):
            return Repair([], beyond_repair)
    batch_of = batch_finder(run)
    marks = {chunk.key: _mark_of(run, chunk, batch_of) for chunk in chunks}
    beyond_repair = [chunk for chunk in chunks if marks[chunk.key] is None]
    # An intervention that has to be created again repeats all of its units.  Until then it keeps
    # its marks and its summary.
    kept = {group_of(chunk.array) for chunk in beyond_repair}
    units = [mark for mark in marks.values() if mark is not None and mark[0] not in kept]
    if any(chunk.key == CREATED for chunk in beyond_repair):
        beyond_repair = _without_record_of_creation(run, beyond_repair)
    repair = Repair(list(dict.fromkeys(units)), beyond_repair)
    if repair.of_run:
        run.location.remove("summary.json")
    for intervention in repair.interventions:
        run.location.remove(f"{EDIT_RECORDS}/{intervention}/summary.json")
    for group, name, index in units:
        run.progress_of(group).clear(name, *index)
    return repair


def _without_record_of_creation(
    run: Run, chunks: list[CorruptChunkError]
) -> list[CorruptChunkError]:
    """Write the record of what the creation wrote again, if that is whole; return what is left."""
    others = [chunk for chunk in chunks if chunk.key != CREATED]
    if any(chunk.array.partition("/")[0] not in EDIT.groups for chunk in others):
        # The record would hold the checksum of a damaged chunk.
        return chunks
    record_creation(run)
    return others


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
    group, _, name = chunk.array.rpartition("/")
    if is_progress_array(chunk.array):
        # Each chunk of a progress array holds one element.  The index of the chunk is therefore the
        # index of the unit of work whose progress the chunk records.
        return group, name, chunk.chunk_index
    if group == GROUP:
        # The coordinates of the progress record, by which units are found, are written with it.
        return None
    dims = dimensions(open_array(run.store, run.url, chunk.array))
    unit = unit_of_chunk(chunk.array, dims, chunk.chunk_index, run.probe_inputs, batch_of)
    if unit is None:
        return None
    return group_of(chunk.array) if unit[0].per_group else GROUP, unit[0].progress, unit[1]


def _corrupt_chunks(array: zarr.Array, is_expected: Expectation) -> Iterator[CorruptChunkError]:
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
