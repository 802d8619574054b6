"""Fast ranks of maps, and rank correlations of many maps with the same labels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

_CHUNK_PIXELS = 1 << 17
"""Number of pixels that are ranked together; their ranks (1 MB of float64) fit a CPU's cache."""

COUNTING_SORT_PIXELS = 1 << 15
"""Smallest map, in pixels, for which counting float16 values is faster than sorting them."""


_ZERO = 0x8000
"""Key of the float16 value +0 (`_sort_keys`)."""

_FINITE_KEYS = slice(0x0400, 0xFC00)
"""Keys of finite float16 values; those of -inf, +inf and NaN lie outside."""


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
    order, tied = _argsort_with_ties(flat)
    ranks = np.empty(flat.shape)
    ranks.ravel()[order] = _sorted_ranks(tied)
    ranks[~np.isfinite(flat).all(1)] = np.nan
    return ranks


def _argsort_with_ties(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort each row, and mark values that equal their predecessor.

    Each value is scaled to an integer, the value's index is appended to it as its lowest bits, and
    the integers are sorted.  NumPy sorts integers several times faster than it computes the order
    of values.  A row of which different values get the same integer is sorted by its values.

    Returns:
        order: index into ``flat.ravel()`` of each row's values in ascending order, (n, pixel).
        tied: whether a value in that order equals the one before it, (n, pixel) bool.

        Both are arbitrary for a row with non-finite values.
    """
    n, count = flat.shape
    index_bits = (count - 1).bit_length()
    keys, scaled = _shifted_keys(flat, index_bits)
    keys |= _pixel_numbers(count)
    keys.sort(axis=1)
    order = keys & ((1 << index_bits) - 1)
    order += count * np.arange(n)[:, None]
    keys >>= index_bits
    tied = np.zeros(flat.shape, bool)
    np.equal(keys[:, 1:], keys[:, :-1], out=tied[:, 1:])
    # Subtraction, scaling and rounding keep the order of values, so values with different
    # integers are in order.  Values with the same integer may still differ.
    places = np.flatnonzero(tied)
    values, sorted_places = flat.ravel(), order.ravel()
    differ = values[sorted_places[places]] != values[sorted_places[places - 1]]
    by_value = ~scaled
    by_value[places[differ] // count] = True
    for row in np.flatnonzero(by_value):
        own = np.argsort(flat[row])
        order[row] = own + row * count
        tied[row, 1:] = flat[row, own[1:]] == flat[row, own[:-1]]
    return order, tied


def _shifted_keys(flat: np.ndarray, low_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale each row's values to integers that keep their order, and shift these by `low_bits`.

    Returns:
        keys: integers whose lowest `low_bits` bits are 0, (n, pixel) int64; different values may
            get the same integer.
        scaled: whether a row has finite values that are not all equal, (n,) bool; the keys of other
            rows are arbitrary.
    """
    least = flat.min(1, keepdims=True).astype(np.float64)
    # The scale leaves one bit unused, because a product may be rounded up to a power of two.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 2.0 ** min(62 - low_bits, 51) / (flat.max(1, keepdims=True) - least)
        values = flat - least
        values *= scale
    # Adding 2**52 rounds to an integer, which is then in the lowest 52 bits of the float64.  The
    # bits above it are equal in all values, so they have no effect on the order.
    values += 2.0**52
    keys = values.view(np.int64)
    keys <<= low_bits
    return keys, np.isfinite(scale[:, 0]) & (scale[:, 0] > 0)


def _covariance_without_ties(flat: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """Return the covariance of the ranks of each row of values with the centred ranks of a map.

    The map's rank of each pixel is appended to the pixel's value as the lowest bits of an integer.
    Sorting these integers brings the map's ranks into the order of the values, in a fraction of the
    time that it takes to look them up in that order.

    Args:
        flat: values, (n, pixel).
        centred: centred ranks of as many maps, multiples of a half, (n, pixel).

    Returns:
        (n,) float64; NaN for a row with equal, almost equal or non-finite values.
    """
    count = flat.shape[1]
    low_bits = (2 * count - 1).bit_length()
    keys, usable = _shifted_keys(flat, low_bits)
    covariance = np.full(len(flat), np.nan)
    for row in np.flatnonzero(usable & np.isfinite(centred[:, 0])):
        own = keys[row]
        own |= (2 * centred[row] + (count - 1)).astype(np.int64)
        own.sort()
        ranks = own & ((1 << low_bits) - 1)
        own >>= low_bits
        if (own[1:] != own[:-1]).all():
            centred_ranks = _pixel_numbers(count) - (count - 1) / 2
            covariance[row] = centred_ranks @ (ranks - (count - 1.0)) / (2 * count)
    return covariance


@lru_cache(maxsize=4)
def _pixel_numbers(count: int) -> np.ndarray:
    """Return the numbers 0 to count - 1, read-only, since creating them for each map is slow."""
    numbers = np.arange(count)
    numbers.setflags(write=False)
    return numbers


def _sorted_ranks(tied: np.ndarray) -> np.ndarray:
    """Rank the values of sorted rows from 1; equal values share their mean rank.

    Args:
        tied: whether a value equals the one before it in its row, (n, pixel) bool.

    Returns:
        (n, pixel) float64.
    """
    count = tied.shape[1]
    ranks = np.tile(np.arange(1.0, count + 1), (len(tied), 1))
    places = np.flatnonzero(tied)
    if len(places):
        # A group of equal values is a value that is not tied, and the tied ones that follow it.
        begins = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        tied_sizes = np.diff(begins, append=len(places))
        first = places[begins] - 1
        means = first % count + 1 + tied_sizes / 2
        ranks.ravel()[first] = means
        ranks.ravel()[places] = np.repeat(means, tied_sizes)
    return ranks


class RankedMaps:
    """Maps whose ranks are computed once and correlated with the ranks of many other maps.

    Args:
        flat: maps as rows of pixels, (n, pixel).
        rows: indices of the maps to rank; None ranks all.  The method `rank` ranks others later.

    Attributes:
        deviation: standard deviation of the ranks, (n,); NaN if a map is constant, has non-finite
            values or is not ranked yet.
        centred: ranks minus their mean, (n, pixel) float32; arbitrary for a map that is not ranked
            yet.  They are multiples of a half, which float32 represents exactly for maps of up to
            eight million pixels.
    """

    def __init__(self, flat: np.ndarray, rows: np.ndarray | None = None) -> None:
        self._flat, self._ranked = flat, np.zeros(len(flat), bool)
        self.deviation = np.full(len(flat), np.nan)
        # The system provides the memory of a row only when its ranks are written.
        self.centred: np.ndarray = np.empty(flat.shape, np.float32)
        self.rank(np.arange(len(flat)) if rows is None else rows)

    def rank(self, rows: np.ndarray) -> None:
        """Rank the maps with the given indices, unless this was done before."""
        new, pixels = np.unique(rows[~self._ranked[rows]]), self._flat.shape[1]
        counts_values = self._flat.dtype == np.float16 and pixels >= COUNTING_SORT_PIXELS
        for part in index_chunks(new, pixels):
            if counts_values:
                self._count(part)
                continue
            ranks = mean_ranks(self._flat[part])
            self.deviation[part] = deviation_or_nan(ranks)
            self.centred[part] = ranks - (pixels + 1) / 2
        self._ranked[new] = True

    def _count(self, rows: np.ndarray) -> None:
        """Rank float16 maps with the given indices by counting their values."""
        for row, keys in zip(rows, _sort_keys(self._flat[rows]), strict=True):
            counted = _CountedRow(keys)
            self.deviation[row] = counted.deviation
            centred = counted.centred.astype(np.float32)
            self.centred[row] = centred[keys] if counted.finite else np.nan

    def correlation_with_one(self, other: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rank-correlate the maps with the given indices with one other map (pixel,), (n,)."""
        self.rank(rows)
        ranks = mean_ranks(other[None])
        correlations = [
            _rank_correlation(ranks, self.centred[part], self.deviation[part])
            for part in index_chunks(rows, self._flat.shape[1])
        ]
        return np.concatenate([np.empty(0), *correlations])

    def correlation(self, flat: np.ndarray, first: int = 0) -> np.ndarray:
        """Rank-correlate consecutive maps with as many others.

        Args:
            flat: the other maps as rows of pixels, (n, pixel).
            first: index of the map to correlate with the first row.

        Returns:
            (n,) float64; NaN where a map is constant or has non-finite values.
        """
        self.rank(np.arange(first, first + len(flat)))
        correlations, start = np.empty(len(flat)), 0
        for chunk in iter_chunks(flat):
            rows, stop = slice(first + start, first + start + len(chunk)), start + len(chunk)
            correlations[start:stop] = self._chunk_correlation(chunk, rows)
            start = stop
        return correlations

    def _chunk_correlation(self, flat: np.ndarray, rows: slice) -> np.ndarray:
        """Rank-correlate the rows of ``flat`` with the stored maps in the slice ``rows``, (n,)."""
        count = flat.shape[1]
        centred, deviation = self.centred[rows], self.deviation[rows]
        if flat.dtype == np.float16 and count >= COUNTING_SORT_PIXELS:
            return _correlation_of_float16(flat, centred) / deviation
        flat = flat.astype(np.float32 if flat.dtype == np.float16 else flat.dtype, copy=False)
        if count < COUNTING_SORT_PIXELS:
            return _sorted_correlation(flat, centred, deviation)
        # Large maps rarely have equal values, except those of float16.
        correlations = _covariance_without_ties(flat, centred)
        correlations /= _deviation_without_ties(count) * deviation
        left = np.isnan(correlations)
        if left.any():
            correlations[left] = _sorted_correlation(flat[left], centred[left], deviation[left])
        return correlations


def _sorted_correlation(flat: np.ndarray, centred: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Correlate the ranks of rows of values with centred ranks of known standard deviation, (n,).

    Args:
        flat: values, (n, pixel).
        centred: centred ranks of as many maps, (n, pixel).
        deviation: standard deviations of these ranks, (n,).
    """
    order, tied = _argsort_with_ties(flat)
    undefined, with_ties = ~np.isfinite(flat).all(1), tied.any(1)
    # Without ties, it suffices to reorder the stored ranks.
    count = flat.shape[1]
    centred_ranks = _pixel_numbers(count) - (count - 1) / 2
    covariance = centred.ravel().take(order) @ centred_ranks / count
    correlations = covariance / (_deviation_without_ties(count) * deviation)
    if with_ties.any():
        ranks = np.empty(flat.shape)
        ranks.ravel()[order] = _sorted_ranks(tied)
        correlations[with_ties] = _rank_correlation(
            ranks[with_ties], centred[with_ties], deviation[with_ties]
        )
    correlations[undefined] = np.nan
    return correlations


def _deviation_without_ties(count: int) -> float:
    """Return the standard deviation of the ranks 1 to `count`."""
    return float(np.sqrt((count**2 - 1) / 12))


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


def index_chunks(rows: np.ndarray, pixels: int) -> Iterator[np.ndarray]:
    """Yield parts of indices (n,) of maps; the maps of a part are as many as in `iter_chunks`."""
    at_once = max(1, _CHUNK_PIXELS // pixels)
    for start in range(0, len(rows), at_once):
        yield rows[start : start + at_once]


def ranks_of_float16(flat: np.ndarray) -> np.ndarray:
    """Rank float16 rows as `mean_ranks` does, by counting each of the 65,536 possible values."""
    ranks = np.empty(flat.shape)
    for out, keys in zip(ranks, _sort_keys(flat), strict=True):
        counted = _CountedRow(keys)
        out[:] = counted.ranks[keys] if counted.finite else np.nan
    return ranks


def _correlation_of_float16(flat: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """Return the covariance of ranks of float16 rows with centred ranks, over their own deviation.

    Pixels of equal value have equal ranks, so sums over values take the place of sums over pixels.

    Args:
        flat: maps as rows of pixels, (n, pixel) float16.
        centred: centred ranks of other maps, (n, pixel).

    Returns:
        (n,) float64; NaN if a map is constant or has non-finite values.
    """
    found = np.full(len(flat), np.nan)
    for i, (keys, other) in enumerate(zip(_sort_keys(flat), centred, strict=True)):
        counted = _CountedRow(keys)
        if counted.finite:
            sums = np.bincount(keys, other, minlength=1 << 16)
            found[i] = sums @ counted.centred / len(keys) / counted.deviation
    return found


def _sort_keys(flat: np.ndarray) -> Iterator[np.ndarray]:
    """Yield for each float16 row the integers, 0 to 65,535, that sort in the order of its values.

    The keys of the numbers are `_FINITE_KEYS`, and -0 has the key before that of +0.
    """
    for row in flat:
        bits = np.ascontiguousarray(row).view(np.int16)
        # The sign bit is flipped, and the other bits of a negative number as well.
        yield (((bits >> 15) | np.int16(-0x8000)) ^ bits).view(np.uint16).astype(np.intp)


class _CountedRow:
    """Ranks of the float16 values of one row, from the number of pixels of each value.

    Args:
        keys: integer of each pixel's value, as `_sort_keys` gives it, (pixel,).

    Attributes:
        counts: number of pixels of each value, by key, (65536,).
        ranks: mean rank of the pixels of each value, by key, (65536,) float64.
        centred: the ranks minus the mean rank of all pixels, by key, (65536,) float64.
        finite: whether all values are finite.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.counts = np.bincount(keys, minlength=1 << 16)
        self.finite = int(self.counts[_FINITE_KEYS].sum()) == len(keys)
        # -0 and +0 are equal, so they share one rank.
        self.counts[_ZERO] += self.counts[_ZERO - 1]
        self.counts[_ZERO - 1] = 0
        # The cumulative count is the highest rank of a group of n equal values.  The mean rank of
        # the group is lower by (n - 1) / 2.
        self.ranks = np.cumsum(self.counts) - (self.counts - 1) / 2
        self.ranks[_ZERO - 1] = self.ranks[_ZERO]
        self.centred = self.ranks - (len(keys) + 1) / 2

    @property
    def deviation(self) -> float:
        """Standard deviation of the pixels' ranks; NaN if all are equal or one is not finite."""
        if not self.finite or self.counts.max() == self.counts.sum():
            return float("nan")
        return float(np.sqrt(self.counts @ np.square(self.centred) / self.counts.sum()))


def deviation_or_nan(flat: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each row; NaN if the row is constant."""
    constant = flat.min(1) == flat.max(1)
    return np.where(constant, np.nan, flat.std(1, dtype=np.float64))
