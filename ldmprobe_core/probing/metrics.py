"""Agreement of a predicted map with a label map, one number an image.

Every function takes maps (n, y, x) and gives float64 (n,).  Edge cases are defined: Dice and IoU of
two empty masks are 1 (nothing was there and nothing was claimed); a correlation with a constant
side is undefined, NaN.  Callers count both.

`BlockScorer` computes the same scores for predictions that are constant on blocks of pixels (a
token's prediction, upsampled by nearest) without building them at image size.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.ranks import RankedMaps, deviation_or_nan, flatten_maps, mean_ranks


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
    return _correlation(flatten_maps(predicted), flatten_maps(truth))


def spearman(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank correlation over pixels, ties at their mean rank; NaN where a side is constant."""
    return _correlation(mean_ranks(flatten_maps(predicted)), mean_ranks(flatten_maps(truth)))


class HeadlineScorer:
    """The headline score of many predictions against the same labels, whose ranks are taken once.

    Args:
        truth: bool masks for foreground, else values, (n, y, x).
    """

    def __init__(self, prop: str, truth: np.ndarray) -> None:
        self.truth = truth if prop == "foreground" else None
        if self.truth is None:
            self.ranked = RankedMaps(flatten_maps(truth))

    def score(self, predicted: np.ndarray) -> np.ndarray:
        """Dice for foreground, else rank correlation, as `score_maps` gives first; (n,)."""
        if self.truth is not None:
            return dice(predicted, self.truth)
        return self.ranked.correlation(flatten_maps(predicted))


def rmse(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root of the mean squared difference over pixels, in the label's units."""
    return np.sqrt(np.square(flatten_maps(predicted) - flatten_maps(truth)).mean(1))


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


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    empty = below == 0
    return np.where(empty, 1.0, above / np.where(empty, 1, below))


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    both = ((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))).mean(1)
    return both / (deviation_or_nan(a) * deviation_or_nan(b))
