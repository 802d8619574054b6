"""Record of the complete units of work of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ldmprobe_core.storage.bookkeeping import ChunkRecord, record_name
from ldmprobe_core.storage.nodes import open_array
from ldmprobe_core.storage.stores.checksum_store import ChecksumStore
from ldmprobe_core.storage.units import UnitKind

GROUP = "progress"
"""Group of the arrays: one per kind of unit, one element per unit."""


class Progress:
    """Completion record of a run's units of work; one array per kind of unit.

    A unit is either complete or absent: it is recorded after all of its data is written.  A kind
    is given as a `UnitKind` or as the name of its array, such as ``generated``; an index has that
    array's dimensions, for example ``(step, layer)`` of ``probed``, from 0.

    Args:
        url: of the run, for messages.
        store: opens the run's Zarr store.
        record: of the chunks that units write; stored before a unit is recorded as complete.
        group: that holds the arrays.
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
        """Record one unit as complete; call it after its data is written."""
        self.set_count(kind, *index, count=1)

    def clear(self, kind: UnitKind | str, *index: int) -> None:
        """Record the units of one index as not done, so that the next run makes their data."""
        self.set_count(kind, *index, count=0)

    def set_count(self, kind: UnitKind | str, *index: int, count: int) -> None:
        """Record how many units are complete at one index."""
        if count:
            name = kind if isinstance(kind, str) else kind.progress
            self._record.save(record_name(f"{self._group}/{name}", index))
        self._open(kind, "r+")[index] = count

    def count(self, kind: UnitKind | str, *index: int) -> int:
        """Number of units that are complete at one index."""
        return int(self._open(kind)[index])

    def is_done(self, kind: UnitKind | str, *index: int) -> bool:
        """Whether one unit is complete."""
        return bool(self.count(kind, *index))

    def counts(self, kind: UnitKind | str) -> np.ndarray:
        """Number of complete units at every index, int: 0 or 1 except for sequential kinds."""
        # A chunk that was never written reads as 0.
        return np.asarray(self._open(kind)[...])

    def completed(self, kind: UnitKind | str) -> np.ndarray:
        """Whether any unit is complete, bool, at every index."""
        return self.counts(kind).astype(bool)

    def require_complete(self, kind: UnitKind | str) -> None:
        """Refuse to continue while a unit of this kind is missing.

        Raises:
            RuntimeError: the number of missing units, and the first of them.
        """
        missing = np.argwhere(~self.completed(kind))
        if len(missing):
            name = kind if isinstance(kind, str) else kind.progress
            raise RuntimeError(
                f"{self._url}: {len(missing)} units are not {name} yet, the first being "
                f"{tuple(int(i) for i in missing[0])}"
            )

    def _open(self, kind: UnitKind | str, mode: Literal["r", "r+"] = "r") -> Any:
        name = kind if isinstance(kind, str) else kind.progress
        return open_array(self._store(), self._url, f"{self._group}/{name}", mode)
