"""Ranks of maps, and rank correlations of many maps with the same labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import rankdata


def flatten_maps(maps: np.ndarray) -> np.ndarray:
    """Maps (n, y, x) as rows of pixels, (n, pixel)."""
    return maps.reshape(len(maps), -1)


def mean_ranks(flat: np.ndarray) -> np.ndarray:
    """Mean ranks along each row, float64; a row that is not finite becomes NaN."""
    if flat.dtype == np.float16:
        if flat.shape[1] >= COUNTING_SORT_PIXELS:
            return ranks_of_float16(flat)
        flat = flat.astype(np.float32)  # which sorts several times faster
    order, tied = _in_order(flat)
    ranks = np.empty(flat.shape)  # without ties a rank is a place in the order
    places = np.broadcast_to(np.arange(1.0, flat.shape[1] + 1), flat.shape)
    np.put_along_axis(ranks, order, places, axis=1)
    if tied.any():  # three times as slow
        ranks[tied] = rankdata(flat[tied], axis=1)
    ranks[~np.isfinite(flat).all(1)] = np.nan
    return ranks


def _in_order(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of each row's values in ascending order, and which rows have equal ones, (n,)."""
    order = np.argsort(flat, axis=1)
    ordered = np.take_along_axis(flat, order, axis=1)
    return order, (ordered[:, 1:] == ordered[:, :-1]).any(1)


class RankedMaps:
    """Maps whose ranks are taken once, to be correlated with the ranks of many others.

    Args:
        flat: (n, pixel).
        off: (pixel,), taken off these maps and off all others first.

    Attributes:
        deviation: of the ranks, (n,); NaN where a map is constant or not finite.
        centred: ranks less their mean, (n, pixel): multiples of a half, which float32 holds exactly
            up to eight million pixels.
    """

    def __init__(self, flat: np.ndarray, off: np.ndarray | None = None) -> None:
        self.off = off
        self.deviation = np.empty(len(flat))
        self.centred: np.ndarray = np.empty(flat.shape, np.float32)
        middle = (flat.shape[1] + 1) / 2
        start = 0
        for part in iter_chunks(flat):
            ranks = mean_ranks(self._rest(part))
            place = slice(start, start + len(part))
            self.deviation[place], self.centred[place] = deviation_or_nan(ranks), ranks - middle
            start += len(part)

    def _rest(self, flat: np.ndarray) -> np.ndarray:
        return flat if self.off is None else flat - self.off

    def correlation(
        self, flat: np.ndarray, grown: Callable[[np.ndarray], np.ndarray] = lambda part: part
    ) -> np.ndarray:
        """Rank correlation with other maps, (n,); as `spearman`.

        Args:
            flat: (n, pixel), or what `grown` makes so: a few samples at a time.
        """
        found, start = np.empty(len(flat)), 0
        for part in iter_chunks(flat, self.centred.shape[1]):
            place = slice(start, start + len(part))
            found[place] = self._of_few(self._rest(grown(part)), place)
            start += len(part)
        return found

    def _of_few(self, flat: np.ndarray, place: slice) -> np.ndarray:
        count = flat.shape[1]
        centred, deviation = self.centred[place], self.deviation[place]
        if flat.dtype == np.float16 and count >= COUNTING_SORT_PIXELS:
            return _with_ranks(mean_ranks(flat), centred, deviation)
        flat = flat.astype(np.float32 if flat.dtype == np.float16 else flat.dtype, copy=False)
        order, tied = _in_order(flat)
        tied |= ~np.isfinite(flat).all(1)
        # Without ties the other's ranks are 1..count: what meets them is gathered in their order.
        places = np.arange(count) - (count - 1) / 2
        both = np.take_along_axis(centred, order, axis=1) @ places / count
        found = both / (np.sqrt((count**2 - 1) / 12) * deviation)
        if tied.any():
            found[tied] = _with_ranks(mean_ranks(flat[tied]), centred[tied], deviation[tied])
        return found


def _with_ranks(ranks: np.ndarray, centred: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Correlation of ranks with centred ranks; with one side centred the other need not be."""
    both = (ranks * centred).mean(1)
    return both / (deviation_or_nan(ranks) * deviation)


def iter_chunks(flat: np.ndarray, pixels: int | None = None) -> Iterator[np.ndarray]:
    """So many maps at a time as a CPU's cache holds, or one."""
    at_once = max(1, _AT_ONCE // (pixels or flat.shape[1]))
    for a in range(0, len(flat), at_once):
        yield flat[a : a + at_once]


_AT_ONCE = 1 << 17
"""Pixels that are ranked together, 1 MB of them."""

COUNTING_SORT_PIXELS = 1 << 15
"""Pixels from which counting float16 values is faster than sorting them."""


def ranks_of_float16(flat: np.ndarray) -> np.ndarray:
    """`mean_ranks` of float16 by counting: there are only 65,536 values, and nothing is sorted."""
    bits = (flat + np.float16(0)).view(np.uint16)  # -0 and 0 are one value
    ordered = np.where(bits >> 15, ~bits, bits | 0x8000)  # integers in the order of the floats
    ranks = np.empty(flat.shape)
    for row, keys in zip(ranks, ordered, strict=True):
        counts = np.bincount(keys, minlength=1 << 16)
        row[:] = (np.cumsum(counts) - (counts - 1) / 2)[keys]  # mean rank of ties
    ranks[~np.isfinite(flat).all(1)] = np.nan
    return ranks


def deviation_or_nan(flat: np.ndarray) -> np.ndarray:
    """Standard deviation of each row, NaN where the row is constant."""
    constant = flat.min(1) == flat.max(1)
    return np.where(constant, np.nan, flat.std(1, dtype=np.float64))
