"""Checksums of chunks that complete units of work, and the creation of a run, have recorded."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.errors import RunError
from ldmprobe_core.storage.bookkeeping import CREATED, read_record, record_names, unit_of_record
from ldmprobe_core.storage.progress import GROUP
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.storage.units import UNIT_KINDS


def recorded_checksums(run: Run) -> tuple[dict[str, bytes], list[CorruptChunkError]]:
    """Read the chunk checksums recorded by complete units of work and at the run's creation.

    Returns:
        the checksums by key, and an error for each damaged record.
    """
    names = [CREATED] if run.location.has(CREATED) else []
    for kind in UNIT_KINDS.values():
        groups = [f"{top}/{name}" for top in kind.groups for name in run.location.folders(top)]
        for group in groups if kind.per_group else [GROUP]:
            records = list(record_names(run.location, f"{group}/{kind.progress}"))
            try:
                completed = run.progress_of(group).completed(kind) if records else np.zeros(0, bool)
            except RunError:
                # The progress record is damaged itself, and reported when its array is checked.
                completed = np.zeros(0, bool)
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
