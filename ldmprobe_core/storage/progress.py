"""Which units of work of a run are complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import xarray as xr
import zarr

from ldmprobe_core.storage.checksum_store import ChecksumStore

GROUP = "progress"
"""Group of the arrays: one per kind of unit, one element per unit."""


class Progress:
    """Completion record of a run's units of work; one array per kind of unit.

    A unit is either complete or absent: it is recorded after all of its data is written.  Kinds
    are ``generated`` and ``labeled`` (batch,), ``probed`` (step, layer), and ``accumulated``
    (accumulator,), which counts the units that are added up.

    Args:
        url: of the run, for messages.
        store: opens the run's Zarr store.
    """

    def __init__(self, url: str, store: Callable[[], ChecksumStore]) -> None:
        self._url, self._store = url, store

    def mark_done(self, kind: str, *index: int) -> None:
        """Record one unit as complete; call it after its data is written."""
        self.set_count(kind, *index, count=1)

    def clear(self, kind: str, *index: int) -> None:
        """Record one unit as not done, so that the next run makes its data again."""
        self.set_count(kind, *index, count=0)

    def set_count(self, kind: str, *index: int, count: int) -> None:
        """Record how many units are complete at one index."""
        self._open("r+")[kind][index] = count  # type: ignore[index]

    def count(self, kind: str, *index: int) -> int:
        """Number of units that are complete at one index."""
        return int(self._open("r")[kind][index])  # type: ignore[index,arg-type]

    def is_done(self, kind: str, *index: int) -> bool:
        """Whether one unit is complete."""
        return bool(self.count(kind, *index))

    def counts(self, kind: str) -> np.ndarray:
        """Number of complete units at every index, int: 0 or 1 except for ``accumulated``."""
        # A chunk that was never written is no damage here: it reads as 0.
        group = xr.open_zarr(
            self._store(), group=GROUP, consolidated=False, chunks=None, zarr_format=3
        )
        return group[kind].values

    def completed(self, kind: str) -> np.ndarray:
        """Whether any unit is complete, bool, at every index."""
        return self.counts(kind).astype(bool)

    def require_complete(self, kind: str) -> None:
        """Refuse to continue while a unit of this kind is missing.

        Raises:
            RuntimeError: the number of missing units, and the first of them.
        """
        missing = np.argwhere(~self.completed(kind))
        if len(missing):
            raise RuntimeError(
                f"{self._url}: {len(missing)} units are not {kind} yet, the first being "
                f"{tuple(int(i) for i in missing[0])}"
            )

    def _open(self, mode: Literal["r", "r+"]) -> zarr.Group:
        return zarr.open_group(
            self._store(), path=GROUP, mode=mode, use_consolidated=False, zarr_format=3
        )
