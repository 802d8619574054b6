"""Metrics of the agreement between predicted and label maps, one number an image.

Every function takes maps (n, y, x) and returns float64 (n,).  `Metric.score` and `score_maps`
leave out the pixels of labels that are NaN, which were not measured.  Edge cases are defined: Dice
and IoU of two empty masks are 1 (an absence, predicted correctly); a correlation with a constant
map is undefined, NaN.  Callers count both.

`METRICS` lists the metrics by name; a `Property` names those that score it.
`block_scores.BlockScorer` computes the same scores for predictions that are constant on blocks of
pixels (a token's prediction, upsampled by nearest) without building them at image size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.probing.measured import measured, score_measured
from ldmprobe_core.probing.ranks import RankedMaps, deviation_or_nan, flatten_maps, mean_ranks
from ldmprobe_core.study.properties import property_of


def dice(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Twice the overlap over the sum of the areas of two bool masks; both empty = 1."""
    overlap = (predicted & truth).sum((1, 2))
    return ratio_or_one(2.0 * overlap, predicted.sum((1, 2)) + truth.sum((1, 2)))


def iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Overlap over union of two bool masks; both empty = 1."""
    overlap = (predicted & truth).sum((1, 2))
    return ratio_or_one(1.0 * overlap, (predicted | truth).sum((1, 2)))


def pearson(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Linear correlation over pixels; NaN where either map is constant or not finite."""
    return _correlation(flatten_maps(predicted), flatten_maps(truth))


def spearman(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank correlation over pixels, ties at their mean rank; NaN where either map is constant."""
    return _correlation(mean_ranks(flatten_maps(predicted)), mean_ranks(flatten_maps(truth)))


def rmse(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root-mean-square difference over pixels, in the label's units."""
    return np.sqrt(np.square(flatten_maps(predicted) - flatten_maps(truth)).mean(1))


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Attributes:
        function: maps predictions and labels (n, y, x) to scores (n,) float64.
        residual: whether the training mean map is first subtracted from both, so that a prediction
            from position alone scores nothing.
    """

    function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    residual: bool = False

    def score(self, predicted: np.ndarray, truth: np.ndarray, mean_map: np.ndarray) -> np.ndarray:
        """Scores (n,) of maps (n, y, x).

        Args:
            mean_map: (y, x), the training samples' mean label.
        """
        if self.residual:
            return score_measured(self.function, predicted - mean_map, truth - mean_map)
        return score_measured(self.function, predicted, truth)


METRICS: dict[str, Metric] = {
    "dice": Metric(dice),
    "iou": Metric(iou),
    "spearman": Metric(spearman),
    "pearson": Metric(pearson),
    "rmse": Metric(rmse),
    "spearman_residual": Metric(spearman, residual=True),
    "pearson_residual": Metric(pearson, residual=True),
}
"""Metrics by name."""


def register_metric(name: str, metric: Metric) -> Metric:
    """Register a metric, so that properties may name it.

    Raises:
        ValueError: the name is taken.
    """
    if name in METRICS:
        raise ValueError(f"metric {name!r}: the name is taken. Fix: choose another.")
    METRICS[name] = metric
    return metric


def score_maps(
    prop: str, predicted: np.ndarray, truth: np.ndarray, mean_map: np.ndarray
) -> np.ndarray:
    """Scores of full-size maps in every metric of a property, (metric, n) float64.

    Args:
        prop: name of a property.
        predicted: (n, y, x); bool for a mask, else values.
        truth: the same of the labels; floats with NaN where not measured.
        mean_map: (y, x), the training samples' mean label.
    """
    names = property_of(prop).metrics
    return np.stack([METRICS[name].score(predicted, truth, mean_map) for name in names])


class HeadlineScorer:
    """Scorer of many predictions against the same labels, in the property's headline metric.

    For Spearman, the ranks of the labels are computed once.

    Args:
        prop: name of a property.
        truth: (n, y, x); bool for a mask, else values; floats with NaN where not measured.
    """

    def __init__(self, prop: str, truth: np.ndarray) -> None:
        self.truth = truth
        self.metric = property_of(prop).metrics[0]
        ranked = self.metric == "spearman" and measured(truth) is None
        self.ranked = RankedMaps(flatten_maps(truth)) if ranked else None

    def score(self, predicted: np.ndarray) -> np.ndarray:
        """Headline scores (n,) of predictions (n, y, x): the first row of `score_maps`."""
        if self.ranked is not None:
            return self.ranked.correlation(flatten_maps(predicted))
        return score_measured(METRICS[self.metric].function, predicted, self.truth)


def ratio_or_one(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise quotient; 1 where the denominator is 0."""
    empty = denominator == 0
    return np.where(empty, 1.0, numerator / np.where(empty, 1, denominator))


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    covariance = ((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))).mean(1)
    return covariance / (deviation_or_nan(a) * deviation_or_nan(b))
