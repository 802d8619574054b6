"""Ranks of maps, and rank correlations of many maps with the same labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import rankdata

_CHUNK_PIXELS = 1 << 17
"""Pixels ranked together: 1 MB of float64 ranks, which fits a CPU's cache."""

COUNTING_SORT_PIXELS = 1 << 15
"""Smallest map, in pixels, for which counting float16 values is faster than sorting them."""


def flatten_maps(maps: np.ndarray) -> np.ndarray:
    """Reshape maps (n, y, x) to rows of pixels, (n, pixel)."""
    return maps.reshape(len(maps), -1)


def mean_ranks(flat: np.ndarray) -> np.ndarray:
    """Ranks (from 1) along each row, ties at their mean rank, float64; NaN in non-finite rows."""
    if flat.dtype == np.float16:
        if flat.shape[1] >= COUNTING_SORT_PIXELS:
            return ranks_of_float16(flat)
        flat = flat.astype(np.float32)  # sorts several times faster than float16
    order, tied = _argsort_with_ties(flat)
    ranks = np.empty(flat.shape)
    sorted_ranks = np.broadcast_to(np.arange(1.0, flat.shape[1] + 1), flat.shape)
    np.put_along_axis(ranks, order, sorted_ranks, axis=1)
    if tied.any():  # only these rows, as rankdata takes three times as long
        ranks[tied] = rankdata(flat[tied], axis=1)
    ranks[~np.isfinite(flat).all(1)] = np.nan
    return ranks


def _argsort_with_ties(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Argsort of each row, (n, pixel), and whether the row contains equal values, (n,) bool."""
    order = np.argsort(flat, axis=1)
    ascending = np.take_along_axis(flat, order, axis=1)
    return order, (ascending[:, 1:] == ascending[:, :-1]).any(1)


class RankedMaps:
    """Maps whose ranks are computed once and correlated with the ranks of many other maps.

    Args:
        flat: (n, pixel).
        baseline: (pixel,), subtracted from these and from the other maps before ranking.

    Attributes:
        deviation: standard deviation of the ranks, (n,); NaN where a map is constant or not finite.
        centred: ranks less their mean, (n, pixel): multiples of a half, which float32 represents
            exactly up to eight million pixels.
    """

    def __init__(self, flat: np.ndarray, baseline: np.ndarray | None = None) -> None:
        self.baseline = baseline
        self.deviation = np.empty(len(flat))
        self.centred: np.ndarray = np.empty(flat.shape, np.float32)
        mean_rank = (flat.shape[1] + 1) / 2
        start = 0
        for chunk in iter_chunks(flat):
            ranks = mean_ranks(self._residual(chunk))
            rows = slice(start, start + len(chunk))
            self.deviation[rows], self.centred[rows] = deviation_or_nan(ranks), ranks - mean_rank
            start += len(chunk)

    def _residual(self, flat: np.ndarray) -> np.ndarray:
        return flat if self.baseline is None else flat - self.baseline

    def correlation(
        self, flat: np.ndarray, upsample: Callable[[np.ndarray], np.ndarray] = lambda chunk: chunk
    ) -> np.ndarray:
        """Rank correlation (n,) with other maps, equal to `metrics.spearman`.

        Args:
            flat: (n, pixel), or (n, token) with `upsample`.
            upsample: maps rows (m, token) to (m, pixel); called on a few rows at a time.
        """
        correlations, start = np.empty(len(flat)), 0
        for chunk in iter_chunks(flat, self.centred.shape[1]):
            rows = slice(start, start + len(chunk))
            correlations[rows] = self._chunk_correlation(self._residual(upsample(chunk)), rows)
            start += len(chunk)
        return correlations

    def _chunk_correlation(self, flat: np.ndarray, rows: slice) -> np.ndarray:
        count = flat.shape[1]
        centred, deviation = self.centred[rows], self.deviation[rows]
        if flat.dtype == np.float16 and count >= COUNTING_SORT_PIXELS:
            return _rank_correlation(mean_ranks(flat), centred, deviation)
        flat = flat.astype(np.float32 if flat.dtype == np.float16 else flat.dtype, copy=False)
        order, tied = _argsort_with_ties(flat)
        tied |= ~np.isfinite(flat).all(1)
        # Without ties, `flat` in ascending order has the ranks 1..count, so it suffices to bring
        # our ranks into that order.
        centred_ranks = np.arange(count) - (count - 1) / 2
        covariance = np.take_along_axis(centred, order, axis=1) @ centred_ranks / count
        correlations = covariance / (np.sqrt((count**2 - 1) / 12) * deviation)
        if tied.any():
            correlations[tied] = _rank_correlation(
                mean_ranks(flat[tied]), centred[tied], deviation[tied]
            )
        return correlations


def _rank_correlation(ranks: np.ndarray, centred: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Correlation (n,) of ranks (n, pixel) with centred ranks (n, pixel) of known deviation (n,).

    One centred factor suffices for the covariance.
    """
    covariance = (ranks * centred).mean(1)
    return covariance / (deviation_or_nan(ranks) * deviation)


def iter_chunks(flat: np.ndarray, pixels: int | None = None) -> Iterator[np.ndarray]:
    """Split rows into consecutive chunks that fit a CPU's cache, at least one row each.

    Args:
        flat: (n, pixel).
        pixels: pixels a row once it is upsampled; those of `flat` if None.
    """
    rows = max(1, _CHUNK_PIXELS // (pixels or flat.shape[1]))
    for start in range(0, len(flat), rows):
        yield flat[start : start + rows]


def ranks_of_float16(flat: np.ndarray) -> np.ndarray:
    """Mean ranks of float16 rows as `mean_ranks`, by counting each of the 65,536 values."""
    bits = (flat + np.float16(0)).view(np.uint16)  # adding 0 turns -0 into 0
    sort_keys = np.where(bits >> 15, ~bits, bits | 0x8000)  # integers that sort as the floats do
    ranks = np.empty(flat.shape)
    for row, keys in zip(ranks, sort_keys, strict=True):
        counts = np.bincount(keys, minlength=1 << 16)
        row[:] = (np.cumsum(counts) - (counts - 1) / 2)[keys]  # mean rank of ties
    ranks[~np.isfinite(flat).all(1)] = np.nan
    return ranks


def deviation_or_nan(flat: np.ndarray) -> np.ndarray:
    """Standard deviation of each row, NaN where the row is constant."""
    constant = flat.min(1) == flat.max(1)
    return np.where(constant, np.nan, flat.std(1, dtype=np.float64))
