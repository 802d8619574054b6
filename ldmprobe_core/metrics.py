"""Agreement of a predicted map with a label map, one number an image.

Every function takes maps (n, y, x) and gives float64 (n,).  Edge cases are defined: Dice and IoU of
two empty masks are 1 (nothing was there and nothing was claimed); a correlation with a constant
side is undefined, NaN.  Callers count both.

`BlockTruth` computes the same scores for predictions that are constant on blocks of pixels (a
token's prediction, upsampled by nearest) without building them at image size.
"""

from __future__ import annotations

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


class BlockTruth:
    """Label maps, prepared to score block-constant predictions exactly as `score_maps` would.

    A prediction p constant on blocks of B pixels meets a full-size label t only through the
    blocks' means: mean(p t) = mean over blocks of p times the block's mean of t; the same for the
    ranks of t, and a block-constant map's pixel ranks are a linear function of its token ranks.

    Args:
        truth: bool masks for foreground, else values, (n, y, x).
        mean_map: (y, x), the training images' mean label.
        grid: tokens down and across.
    """

    def __init__(
        self, prop: str, truth: np.ndarray, mean_map: np.ndarray, grid: tuple[int, int]
    ) -> None:
        self.prop, self.grid, self.size = prop, grid, truth.shape[1:]
        self.means = _flat(block_means(truth, grid))
        if prop == "foreground":
            return
        self.mean_map = mean_map
        flat = _flat(truth).astype(np.float64)
        self.square = np.square(flat).mean(1)
        self.deviation = _deviation(flat)
        ranks = _ranks(flat)
        self.rank_deviation = _deviation(ranks)
        self.rank_means = _flat(block_means(ranks.reshape(truth.shape), grid))
        rest = flat - mean_map.ravel()
        self.rest_deviation = _deviation(rest)
        self.rest_centred = rest - rest.mean(1, keepdims=True)
        self.rest_ranked = _Ranked(rest)

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
        flat = flat.astype(np.float64)
        squared = self.square - 2 * (flat * self.means).mean(1) + np.square(flat).mean(1)
        rest = _flat(upsample(tokens, self.size)) - self.mean_map.ravel()
        return np.stack(
            [
                _block_correlation(_ranks(flat), self.rank_means, self.rank_deviation),
                _block_correlation(flat, self.means, self.deviation),
                np.sqrt(np.maximum(squared, 0)),
                self.rest_ranked.correlation(rest),
                (rest * self.rest_centred).mean(1) / (_deviation(rest) * self.rest_deviation),
            ]
        )


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
    """

    def __init__(self, flat: np.ndarray) -> None:
        ranks = _ranks(flat)
        self.deviation = _deviation(ranks)
        self.centred = ranks - ranks.mean(1, keepdims=True)

    def correlation(self, flat: np.ndarray) -> np.ndarray:
        """Rank correlation with other maps, (n,); as `spearman`."""
        count = flat.shape[1]
        if flat.dtype == np.float16 and count >= _MANY:
            return self._with_ranks(_ranks(flat), slice(None))
        flat = flat.astype(np.float32 if flat.dtype == np.float16 else flat.dtype, copy=False)
        order, tied = _in_order(flat)
        tied |= ~np.isfinite(flat).all(1)
        # Without ties the other's ranks are 1..count: what meets them is gathered in their order.
        places = np.arange(count) - (count - 1) / 2
        both = np.take_along_axis(self.centred, order, axis=1) @ places / count
        found = both / (np.sqrt((count**2 - 1) / 12) * self.deviation)
        if tied.any():
            found[tied] = self._with_ranks(_ranks(flat[tied]), tied)
        return found

    def _with_ranks(self, ranks: np.ndarray, which: np.ndarray | slice) -> np.ndarray:
        """The same for ranks; the labels' are centred, so these need not be."""
        both = (ranks * self.centred[which]).mean(1)
        return both / (_deviation(ranks) * self.deviation[which])


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
