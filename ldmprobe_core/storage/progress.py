"""Record of the complete units of work of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import zarr

from ldmprobe_core.storage.checksum_store import ChecksumStore
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
        group: that holds the arrays.
    """

    def __init__(self, url: str, store: Callable[[], ChecksumStore], group: str = GROUP) -> None:
        self._url, self._store, self._group = url, store, group

    def mark_done(self, kind: UnitKind | str, *index: int) -> None:
        """Record one unit as complete; call it after its data is written."""
        self.set_count(kind, *index, count=1)

    def clear(self, kind: UnitKind | str, *index: int) -> None:
        """Record the units of one index as not done, so that the next run makes their data."""
        self.set_count(kind, *index, count=0)

    def set_count(self, kind: UnitKind | str, *index: int, count: int) -> None:
        """Record how many units are complete at one index."""
        self._open("r+")[_array(kind)][index] = count  # type: ignore[index]

    def count(self, kind: UnitKind | str, *index: int) -> int:
        """Number of units that are complete at one index."""
        return int(self._open("r")[_array(kind)][index])  # type: ignore[index,arg-type]

    def is_done(self, kind: UnitKind | str, *index: int) -> bool:
        """Whether one unit is complete."""
        return bool(self.count(kind, *index))

    def counts(self, kind: UnitKind | str) -> np.ndarray:
        """Number of complete units at every index, int: 0 or 1 except for sequential kinds."""
        # A chunk that was never written reads as 0.
        return np.asarray(self._open("r")[_array(kind)][...])  # type: ignore[index]

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
            raise RuntimeError(
                f"{self._url}: {len(missing)} units are not {_array(kind)} yet, the first being "
                f"{tuple(int(i) for i in missing[0])}"
            )

    def _open(self, mode: Literal["r", "r+"]) -> zarr.Group:
        return zarr.open_group(
            self._store(), path=self._group, mode=mode, use_consolidated=False, zarr_format=3
        )


def _array(kind: UnitKind | str) -> str:
    return kind if isinstance(kind, str) else kind.progress
