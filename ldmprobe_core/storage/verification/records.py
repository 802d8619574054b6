"""Checksums of chunks that complete units of work, and the creation of a run, have recorded."""

from __future__ import annotations

from itertools import product

import numpy as np

from ldmprobe_core.errors import RunError
from ldmprobe_core.storage.bookkeeping import (
    CREATED,
    FOLDER,
    ChunkRecord,
    read_record,
    record_name,
    record_names,
)
from ldmprobe_core.storage.nodes import consolidated_metadata, dimensions, open_array
from ldmprobe_core.storage.progress import GROUP
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.storage.units import EDIT, STUDY_KINDS, UNIT_KINDS, UnitKind
from ldmprobe_core.storage.verification.expected import is_written_at_creation


def recorded_checksums(run: Run) -> tuple[dict[str, bytes], list[CorruptChunkError]]:
    """Read the chunk checksums recorded by complete units of work and at the run's creation.

    Runs of early versions have no such records.

    Returns:
        the checksums by key, and an error for each record that is damaged or missing.
    """
    names, missing = [], []
    # Also a file in the place of the folder shows that the run had records.
    keeps_records = FOLDER in (*run.location.files(), *run.location.folders(""))
    if run.location.has(CREATED):
        names.append(CREATED)
    elif keeps_records:
        missing.append(CREATED)
    for kind in UNIT_KINDS.values() if keeps_records else []:
        groups = [f"{top}/{name}" for top in kind.groups for name in run.location.folders(top)]
        for group in groups if kind.per_group else [GROUP]:
            expected = _records_of_complete_units(run, group, kind)
            present = set(record_names(run.location, f"{group}/{kind.progress}"))
            # A unit with recorded checksums that is incomplete is being repeated.  It may have
            # overwritten some of its chunks, so these checksums no longer apply.
            names += [name for name in expected if name in present]
            if kind in (*STUDY_KINDS, EDIT):  # A unit of an extension may write no chunks.
                missing += [name for name in expected if name not in present]
    recorded: dict[str, bytes] = {}
    damaged = [CorruptChunkError(run.url, name, "missing") for name in missing]
    for name in names:
        try:
            recorded |= read_record(run.location, name)
        except ValueError:
            damaged.append(CorruptChunkError(run.url, name, "changed"))
    return recorded, damaged


def _records_of_complete_units(run: Run, group: str, kind: UnitKind) -> list[str]:
    """Return the names of the checksum files that the complete units of a group should have."""
    try:
        completed = run.progress_of(group).completed(kind)
    except RunError:
        # The run has no such units, or the progress record is damaged itself, which is reported
        # when its array is checked.
        return []
    units = map(tuple, np.argwhere(completed).tolist())
    return [record_name(f"{group}/{kind.progress}", unit) for unit in units]


def record_creation(run: Run) -> None:
    """Write the record of the chunks that the creation of a run wrote again, from these chunks.

    The caller has read the chunks, which are whole.
    """
    record = ChunkRecord(run.location)
    for path, node in consolidated_metadata(run.location).items():
        if node["node_type"] == "group" or path.partition("/")[0] in EDIT.groups:
            continue
        array = open_array(run.store, run.url, path)
        if is_written_at_creation(path, dimensions(array)):
            for index in product(*map(range, array.cdata_shape)):
                key = f"{path}/c/{'/'.join(map(str, index))}"
                record.add(key, run.location.read_bytes(key))
    record.save(CREATED)
