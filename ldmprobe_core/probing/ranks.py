"""Fast ranks of maps, and rank correlations of many maps with the same labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_CHUNK_PIXELS = 1 << 17
"""Number of pixels that are ranked together; their ranks (1 MB of float64) fit a CPU's cache."""

COUNTING_SORT_PIXELS = 1 << 15
"""Smallest map, in pixels, for which counting float16 values is faster than sorting them."""


def flatten_maps(maps: np.ndarray) -> np.ndarray:
    """Reshape maps (n, y, x) to rows of pixels, (n, pixel)."""
    return maps.reshape(len(maps), -1)


def mean_ranks(flat: np.ndarray) -> np.ndarray:
    """Rank the values of each row from 1, in float64; equal values share their mean rank.

    All ranks of a row with a non-finite value are NaN.
    """
    if flat.dtype == np.float16:
        if flat.shape[1] >= COUNTING_SORT_PIXELS:
            return ranks_of_float16(flat)
        # Convert to float32, which NumPy sorts several times faster than float16.
        flat = flat.astype(np.float32)
    order, equal = _argsort_with_ties(flat)
    ranks = np.empty(flat.shape)
    np.put_along_axis(ranks, order, _sorted_ranks(equal), axis=1)
    ranks[~np.isfinite(flat).all(1)] = np.nan
    return ranks


def _argsort_with_ties(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ascending order of each row, and mark values that equal their predecessor.

    Returns:
        order (n, pixel), and whether each value in that order, from the second on, equals the one
        before, (n, pixel - 1) bool.
    """
    order = np.argsort(flat, axis=1)
    ascending = np.take_along_axis(flat, order, axis=1)
    return order, ascending[:, 1:] == ascending[:, :-1]


def _sorted_ranks(equal: np.ndarray) -> np.ndarray:
    """Rank the values of sorted rows from 1; equal values share their mean rank.

    Args:
        equal: whether each value from the second on equals the one before, (n, pixel - 1) bool.

    Returns:
        (n, pixel) float64.
    """
    count = equal.shape[1] + 1
    ranks = np.tile(np.arange(1.0, count + 1), (len(equal), 1))
    tied = np.flatnonzero(equal.any(1))
    if len(tied):
        # The values from index `first` to `last` are equal, so they get the mean of their ranks.
        changes, edge = ~equal[tied], np.ones((len(tied), 1), bool)
        index = np.arange(count)
        first = np.where(np.hstack([edge, changes]), index, 0)
        last = np.where(np.hstack([changes, edge]), index, count)[:, ::-1]
        first = np.maximum.accumulate(first, axis=1)
        last = np.minimum.accumulate(last, axis=1)[:, ::-1]
        ranks[tied] = (first + last) / 2 + 1
    return ranks


class RankedMaps:
    """Maps whose ranks are computed once and correlated with the ranks of many other maps.

    Args:
        flat: maps as rows of pixels, (n, pixel).

    Attributes:
        deviation: standard deviation of the ranks, (n,); NaN if a map is constant or has
            non-finite values.
        centred: ranks minus their mean, (n, pixel) float32.  They are multiples of a half, which
            float32 represents exactly for maps of up to eight million pixels.
    """

    def __init__(self, flat: np.ndarray) -> None:
        self.deviation = np.empty(len(flat))
        self.centred: np.ndarray = np.empty(flat.shape, np.float32)
        mean_rank = (flat.shape[1] + 1) / 2
        start = 0
        for chunk in iter_chunks(flat):
            ranks = mean_ranks(chunk)
            rows = slice(start, start + len(chunk))
            self.deviation[rows], self.centred[rows] = deviation_or_nan(ranks), ranks - mean_rank
            start += len(chunk)

    def correlation(self, flat: np.ndarray) -> np.ndarray:
        """Rank-correlate each map with the row of the same index in `flat`, (n, pixel)."""
        correlations, start = np.empty(len(flat)), 0
        for chunk in iter_chunks(flat):
            rows = slice(start, start + len(chunk))
            correlations[rows] = self._chunk_correlation(chunk, rows)
            start += len(chunk)
        return correlations

    def _chunk_correlation(self, flat: np.ndarray, rows: slice) -> np.ndarray:
        """Rank-correlate the rows of ``flat`` with the stored maps in the slice ``rows``, (n,)."""
        count = flat.shape[1]
        centred, deviation = self.centred[rows], self.deviation[rows]
        if flat.dtype == np.float16 and count >= COUNTING_SORT_PIXELS:
            return _rank_correlation(mean_ranks(flat), centred, deviation)
        flat = flat.astype(np.float32 if flat.dtype == np.float16 else flat.dtype, copy=False)
        order, equal = _argsort_with_ties(flat)
        undefined, tied = ~np.isfinite(flat).all(1), equal.any(1)
        # Without ties, the ranks of `flat` in ascending order are 1..count, so it suffices to
        # reorder the stored ranks.
        centred_ranks = np.arange(count) - (count - 1) / 2
        covariance = np.take_along_axis(centred, order, axis=1) @ centred_ranks / count
        correlations = covariance / (np.sqrt((count**2 - 1) / 12) * deviation)
        if tied.any():
            ranks = np.empty((int(tied.sum()), count))
            np.put_along_axis(ranks, order[tied], _sorted_ranks(equal[tied]), axis=1)
            correlations[tied] = _rank_correlation(ranks, centred[tied], deviation[tied])
        correlations[undefined] = np.nan
        return correlations


def _rank_correlation(ranks: np.ndarray, centred: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Correlate ranks (n, pixel) with centred ranks of known standard deviation (n,).

    The covariance of two variables needs only one of them centred, so `ranks` need not be.
    """
    covariance = (ranks * centred).mean(1)
    return covariance / (deviation_or_nan(ranks) * deviation)


def iter_chunks(flat: np.ndarray) -> Iterator[np.ndarray]:
    """Yield chunks of consecutive rows (n, pixel), small enough for a CPU's cache if possible."""
    rows = max(1, _CHUNK_PIXELS // flat.shape[1])
    for start in range(0, len(flat), rows):
        yield flat[start : start + rows]


def ranks_of_float16(flat: np.ndarray) -> np.ndarray:
    """Rank float16 rows as `mean_ranks` does, by counting each of the 65,536 possible values."""
    # Adding 0 turns -0 into +0, so that both get the same bits and hence the same rank.
    bits = (flat + np.float16(0)).view(np.uint16)
    # Flip the bits so that the unsigned integers sort in the order of the floats.
    sort_keys = np.where(bits >> 15, ~bits, bits | 0x8000)
    ranks = np.empty(flat.shape)
    for row, keys in zip(ranks, sort_keys, strict=True):
        counts = np.bincount(keys, minlength=1 << 16)
        # The cumulative count is the highest rank of a group of n equal values.  The mean rank of
        # the group is lower by (n - 1) / 2.
        row[:] = (np.cumsum(counts) - (counts - 1) / 2)[keys]
    ranks[~np.isfinite(flat).all(1)] = np.nan
    return ranks


def deviation_or_nan(flat: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each row; NaN if the row is constant."""
    constant = flat.min(1) == flat.max(1)
    return np.where(constant, np.nan, flat.std(1, dtype=np.float64))
