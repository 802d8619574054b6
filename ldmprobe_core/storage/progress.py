"""Record of which units of work of a run are complete, stored in Zarr arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ldmprobe_core.errors import RunError, counted, verb
from ldmprobe_core.storage.bookkeeping import ChunkRecord, record_name
from ldmprobe_core.storage.nodes import open_array
from ldmprobe_core.storage.stores.checksum_store import ChecksumStore
from ldmprobe_core.storage.units import PROGRESS_GROUP, UnitKind

GROUP = PROGRESS_GROUP
"""Name of the group that holds one array per kind of unit, with one element per unit."""


class Progress:
    """Record of the complete units of work of a run, with one array per kind of unit.

    A unit is recorded as complete after all of its data is written.  In the methods, ``kind`` is a
    `UnitKind` or the name of its array, such as ``generated``, and ``index`` is a position in that
    array, from 0; for example, the array ``probed`` has the dimensions ``(step, layer)``.

    Args:
        url: URL of the run, for messages.
        store: function that opens the run's Zarr store.
        record: checksums of the chunks that a unit has written; they are saved just before the unit
            is recorded as complete.
        group: path of the group that holds the arrays.
    """

    def __init__(
        self,
        url: str,
        store: Callable[[], ChecksumStore],
        record: ChunkRecord,
        group: str = GROUP,
    ) -> None:
        self._url, self._store, self._record, self._group = url, store, record, group

    def mark_done(self, kind: UnitKind | str, *index: int) -> None:
        """Record one unit of work as complete; call this after all of its data is written."""
        self.set_count(kind, *index, count=1)

    def clear(self, kind: UnitKind | str, *index: int) -> None:
        """Record the units at one index as incomplete, so that the next run repeats them."""
        self.set_count(kind, *index, count=0)

    def set_count(self, kind: UnitKind | str, *index: int, count: int) -> None:
        """Record the number of complete units at one index of the progress array."""
        if count:
            name = kind if isinstance(kind, str) else kind.progress
            self._record.save(record_name(f"{self._group}/{name}", index))
        self._open(kind, "r+")[index] = count

    def count(self, kind: UnitKind | str, *index: int) -> int:
        """Return the number of complete units at one index of the progress array."""
        return int(self._open(kind)[index])

    def is_done(self, kind: UnitKind | str, *index: int) -> bool:
        """Return whether the unit of work at one index is complete."""
        return bool(self.count(kind, *index))

    def counts(self, kind: UnitKind | str) -> np.ndarray:
        """Return the number of complete units of work at each index of the progress array.

        The number is 0 or 1, except for sequential kinds of units, of which an index has several.
        """
        # A unit that was never recorded has no chunk in this array, and reads as the fill value 0.
        return np.asarray(self._open(kind)[...])

    def completed(self, kind: UnitKind | str) -> np.ndarray:
        """Return a boolean array that is True at each index where a unit is complete."""
        return self.counts(kind).astype(bool)

    def require_complete(self, kind: UnitKind | str) -> None:
        """Check that all units of one kind are complete.

        Raises:
            RunError: units are missing; the message gives their number and the first index.
        """
        missing = np.argwhere(~self.completed(kind))
        if len(missing):
            name = kind if isinstance(kind, str) else kind.progress
            raise RunError(
                f"{self._url}: {counted(len(missing), 'unit')} of work {verb(len(missing))} not "
                f"{name} yet. The first has the "
                f"index {tuple(int(i) for i in missing[0])} in the array {self._group}/{name}. "
                f"Fix: run `ldmprobe verify {self._url} --redo`, then the study again, which "
                "carries out these units"
            )

    def _open(self, kind: UnitKind | str, mode: Literal["r", "r+"] = "r") -> Any:
        """Open the progress array of a kind of unit."""
        name = kind if isinstance(kind, str) else kind.progress
        return open_array(self._store(), self._url, f"{self._group}/{name}", mode)
