"""Agreement of a predicted map with a label map, one number an image.

Every function takes maps (n, y, x) and gives float64 (n,).  Edge cases are defined: Dice and IoU of
two empty masks are 1 (nothing was there and nothing was claimed); a correlation with a constant
side is undefined, NaN.  Callers count both.

`BlockTruth` computes the same scores for predictions that are constant on blocks of pixels (a
token's prediction, upsampled by nearest) without building them at image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import rankdata

METRICS: dict[str, tuple[str, ...]] = {
    "foreground": ("dice", "iou"),
    "depth": ("spearman", "pearson", "rmse", "spearman_residual", "pearson_residual"),
    "shading": ("spearman", "pearson", "rmse", "spearman_residual", "pearson_residual"),
}
"""Metrics of each property; the first is its headline.  Residual: the training mean map is taken
off label and prediction first, so that position alone scores nothing."""


def dice(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Twice the overlap over the sum of the areas of two bool masks; both empty = 1."""
    overlap = (predicted & truth).sum((1, 2))
    return _ratio(2.0 * overlap, predicted.sum((1, 2)) + truth.sum((1, 2)))


def iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Overlap over union of two bool masks; both empty = 1."""
    overlap = (predicted & truth).sum((1, 2))
    return _ratio(1.0 * overlap, (predicted | truth).sum((1, 2)))


def pearson(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Linear correlation over pixels; NaN where a side is constant or not finite."""
    return _correlation(_flat(predicted), _flat(truth))


def spearman(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank correlation over pixels, ties at their mean rank; NaN where a side is constant."""
    return _correlation(_ranks(_flat(predicted)), _ranks(_flat(truth)))


class Headline:
    """The headline score of many predictions against the same labels, whose ranks are taken once.

    Args:
        truth: bool masks for foreground, else values, (n, y, x).
    """

    def __init__(self, prop: str, truth: np.ndarray) -> None:
        self.truth = truth if prop == "foreground" else None
        if self.truth is None:
            self.ranked = _Ranked(_flat(truth))

    def score(self, predicted: np.ndarray) -> np.ndarray:
        """Dice for foreground, else rank correlation, as `score_maps` gives first; (n,)."""
        if self.truth is not None:
            return dice(predicted, self.truth)
        return self.ranked.correlation(_flat(predicted))


def rmse(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root of the mean squared difference over pixels, in the label's units."""
    return np.sqrt(np.square(_flat(predicted) - _flat(truth)).mean(1))


def score_maps(
    prop: str, predicted: np.ndarray, truth: np.ndarray, mean_map: np.ndarray
) -> np.ndarray:
    """Every metric of a property, (metric, n), for full-size maps.

    Args:
        predicted, truth: bool masks for foreground, else values.
        mean_map: (y, x), the training images' mean label.
    """
    if prop == "foreground":
        return np.stack([dice(predicted, truth), iou(predicted, truth)])
    rest = predicted - mean_map, truth - mean_map
    return np.stack(
        [
            spearman(predicted, truth),
            pearson(predicted, truth),
            rmse(predicted, truth),
            spearman(*rest),
            pearson(*rest),
        ]
    )


def block_means(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean of each token's block of pixels, (n, *grid) float64.

    Raises:
        ValueError: the image does not divide into the grid.
    """
    n, height, width = maps.shape
    y, x = grid
    if height % y or width % x:
        raise ValueError(f"maps of {height} x {width} do not divide into {y} x {x} tokens")
    blocks = maps.reshape(n, y, height // y, x, width // x)
    return blocks.mean((2, 4), dtype=np.float64)


def upsample(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest upsampling of (n, y, x) by whole factors: each token fills its block."""
    _, y, x = tokens.shape
    return tokens.repeat(size[0] // y, 1).repeat(size[1] // x, 2)


class FullTruth:
    """What scoring needs of full-size label maps whatever the grid: kept once a property.

    Args:
        truth: values (n, y, x).
        mean_map: (y, x), the training images' mean label.
    """

    def __init__(self, truth: np.ndarray, mean_map: np.ndarray) -> None:
        self.mean_map = mean_map
        self.ranked = _Ranked(_flat(truth))
        self.rest_ranked = _Ranked(_flat(truth), _flat(mean_map[None])[0])
        moments = [self._moments(part) for part in _few(_flat(truth))]
        self.square, self.deviation, self.rest_mean, self.rest_deviation, self.with_mean_map = (
            np.concatenate([part[i] for part in moments]) for i in range(5)
        )

    def _moments(self, flat: np.ndarray) -> list[np.ndarray]:
        flat, mean_map = flat.astype(np.float64), self.mean_map.ravel()
        rest = flat - mean_map
        centred = rest - rest.mean(1, keepdims=True)
        return [
            np.square(flat).mean(1),
            _deviation(flat),
            rest.mean(1),
            _deviation(rest),
            (centred * mean_map).mean(1),
        ]


class BlockTruth:
    """Label maps, prepared to score block-constant predictions exactly as `score_maps` would.

    A prediction p constant on blocks of B pixels meets a full-size label t only through the
    blocks' means: mean(p t) = mean over blocks of p times the block's mean of t; the same for the
    ranks of t, and a block-constant map's pixel ranks are a linear function of its token ranks.
    Only the ranks of p less the mean map need every pixel; they are taken a few samples at a time.

    Args:
        truth: bool masks for foreground, else values, (n, y, x).
        mean_map: (y, x), the training images' mean label.
        grid: tokens down and across.
        full: of the same maps, where it is there already.
    """

    def __init__(
        self,
        prop: str,
        truth: np.ndarray,
        mean_map: np.ndarray,
        grid: tuple[int, int],
        full: FullTruth | None = None,
    ) -> None:
        self.prop, self.size = prop, truth.shape[1:]
        self.means = _flat(block_means(truth, grid))
        if prop == "foreground":
            return
        self.full = full or FullTruth(truth, mean_map)
        ranks = self.full.ranked.centred.reshape(truth.shape)
        self.rank_means = _flat(block_means(ranks, grid))
        self.mean_map = _flat(block_means(mean_map[None], grid))

    def scores(self, tokens: np.ndarray) -> np.ndarray:
        """Every metric of the property, (metric, n).

        Args:
            tokens: predictions (n, *grid); bool for foreground, else values.
        """
        flat = _flat(tokens)
        if self.prop == "foreground":
            overlap = (flat * self.means).mean(1)
            area, truth = flat.mean(1), self.means.mean(1)
            return np.stack(
                [_ratio(2 * overlap, area + truth), _ratio(overlap, area + truth - overlap)]
            )
        full, flat = self.full, flat.astype(np.float64)
        squared = full.square - 2 * (flat * self.means).mean(1) + np.square(flat).mean(1)
        return np.stack(
            [
                _block_correlation(_ranks(flat), self.rank_means, full.ranked.deviation),
                _block_correlation(flat, self.means, full.deviation),
                np.sqrt(np.maximum(squared, 0)),
                full.rest_ranked.correlation(
                    flat,
                    lambda part: _flat(upsample(part.reshape(-1, *tokens.shape[1:]), self.size)),
                ),
                self._pearson_residual(flat),
            ]
        )

    def _pearson_residual(self, flat: np.ndarray) -> np.ndarray:
        """Correlation of p - m with t - m, m the mean map, from block means alone."""
        full, mean_map = self.full, self.full.mean_map
        rest_means = self.means - self.mean_map - full.rest_mean[:, None]
        both = (flat * rest_means).mean(1) - full.with_mean_map
        centred = flat - flat.mean(1, keepdims=True)
        own = np.square(centred).mean(1) + mean_map.var()
        variance = own - 2 * (centred * self.mean_map).mean(1)
        # Rounding leaves a trace where the prediction is the mean map itself.
        deviation = np.sqrt(np.where(variance > 1e-12 * own, variance, np.nan))
        return both / (deviation * full.rest_deviation)


def _flat(maps: np.ndarray) -> np.ndarray:
    return maps.reshape(len(maps), -1)


def _ranks(flat: np.ndarray) -> np.ndarray:
    """Mean ranks along each row, float64; a row that is not finite becomes NaN."""
    if flat.dtype == np.float16:
        if flat.shape[1] >= _MANY:
            return _ranks_of_halves(flat)
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


class _Ranked:
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
        for part in _few(flat):
            ranks = _ranks(self._rest(part))
            place = slice(start, start + len(part))
            self.deviation[place], self.centred[place] = _deviation(ranks), ranks - middle
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
        for part in _few(flat, self.centred.shape[1]):
            place = slice(start, start + len(part))
            found[place] = self._of_few(self._rest(grown(part)), place)
            start += len(part)
        return found

    def _of_few(self, flat: np.ndarray, place: slice) -> np.ndarray:
        count = flat.shape[1]
        centred, deviation = self.centred[place], self.deviation[place]
        if flat.dtype == np.float16 and count >= _MANY:
            return _with_ranks(_ranks(flat), centred, deviation)
        flat = flat.astype(np.float32 if flat.dtype == np.float16 else flat.dtype, copy=False)
        order, tied = _in_order(flat)
        tied |= ~np.isfinite(flat).all(1)
        # Without ties the other's ranks are 1..count: what meets them is gathered in their order.
        places = np.arange(count) - (count - 1) / 2
        both = np.take_along_axis(centred, order, axis=1) @ places / count
        found = both / (np.sqrt((count**2 - 1) / 12) * deviation)
        if tied.any():
            found[tied] = _with_ranks(_ranks(flat[tied]), centred[tied], deviation[tied])
        return found


def _with_ranks(ranks: np.ndarray, centred: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Correlation of ranks with centred ranks; with one side centred the other need not be."""
    both = (ranks * centred).mean(1)
    return both / (_deviation(ranks) * deviation)


def _few(flat: np.ndarray, pixels: int | None = None) -> Iterator[np.ndarray]:
    """So many maps at a time as a CPU's cache holds, or one."""
    at_once = max(1, _AT_ONCE // (pixels or flat.shape[1]))
    for a in range(0, len(flat), at_once):
        yield flat[a : a + at_once]


_AT_ONCE = 1 << 17
"""Pixels that are ranked together, 1 MB of them."""

_MANY = 1 << 15
"""Pixels from which counting float16 values is faster than sorting them."""


def _ranks_of_halves(flat: np.ndarray) -> np.ndarray:
    """`_ranks` of float16 by counting: there are only 65,536 values, and nothing is sorted."""
    bits = (flat + np.float16(0)).view(np.uint16)  # -0 and 0 are one value
    ordered = np.where(bits >> 15, ~bits, bits | 0x8000)  # integers in the order of the floats
    ranks = np.empty(flat.shape)
    for row, keys in zip(ranks, ordered, strict=True):
        counts = np.bincount(keys, minlength=1 << 16)
        row[:] = (np.cumsum(counts) - (counts - 1) / 2)[keys]  # the middle of each value's places
    ranks[~np.isfinite(flat).all(1)] = np.nan
    return ranks


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    empty = below == 0
    return np.where(empty, 1.0, above / np.where(empty, 1, below))


def _deviation(flat: np.ndarray) -> np.ndarray:
    """Standard deviation of each row, NaN where the row is constant."""
    constant = flat.min(1) == flat.max(1)
    return np.where(constant, np.nan, flat.std(1, dtype=np.float64))


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    both = ((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))).mean(1)
    return both / (_deviation(a) * _deviation(b))


def _block_correlation(tokens: np.ndarray, means: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Correlation of a block-constant map with a map of these block means and deviation."""
    centred = tokens - tokens.mean(1, keepdims=True)
    both = (centred * (means - means.mean(1, keepdims=True))).mean(1)
    return both / (_deviation(tokens) * deviation)
