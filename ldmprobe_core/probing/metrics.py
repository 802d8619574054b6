"""Metrics that compare predicted maps with label maps and give one number for each image.

Every metric function takes maps (n, y, x) and returns float64 (n,).  The built-in ones also take
one prediction (1, y, x) of all images.  The Dice and IoU of two empty
masks are 1, because the absence of an object was predicted correctly.  A correlation with a
constant map is undefined, and its score is NaN.  The run's summary counts both cases.
`Metric.score` and `score_maps` ignore label pixels that are NaN, that is, not measured.  Partial
correlations (module `partial`) also take the maps that are regressed out.

`METRICS` lists the metrics by name, and each `Property` names the metrics that it uses.
`block_scores.BlockScorer` gives the same scores for token predictions without upsampling them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.probing.detection import auroc, average_precision
from ldmprobe_core.probing.measured import measured, score_measured
from ldmprobe_core.probing.partial import (
    partial_pearson,
    partial_spearman,
    position_covariates,
)
from ldmprobe_core.probing.ranks import RankedMaps, flatten_maps, mean_ranks
from ldmprobe_core.study.properties import REGISTERED_METRICS, property_of


def dice(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice coefficient of two bool masks: 2 |A and B| / (|A| + |B|); 1 if both are empty."""
    _require_masks(predicted, truth)
    overlap = (predicted & truth).sum((1, 2))
    return ratio_or_one(2.0 * overlap, predicted.sum((1, 2)) + truth.sum((1, 2)))


def iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of two bool masks; 1 if both are empty."""
    _require_masks(predicted, truth)
    overlap = (predicted & truth).sum((1, 2))
    return ratio_or_one(1.0 * overlap, (predicted | truth).sum((1, 2)))


def pearson(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Linear correlation over pixels; NaN if either map is constant or has non-finite values."""
    _require_alike(predicted, truth)
    return _correlation(flatten_maps(predicted), flatten_maps(truth))


def spearman(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank correlation over pixels, with mean ranks for ties; NaN if either map is constant."""
    _require_alike(predicted, truth)
    return _correlation(mean_ranks(flatten_maps(predicted)), mean_ranks(flatten_maps(truth)))


def rmse(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root-mean-square difference over pixels, in the label's units."""
    _require_alike(predicted, truth)
    return np.sqrt(np.square(flatten_maps(predicted) - flatten_maps(truth)).mean(1))


def _require_alike(predicted: np.ndarray, truth: np.ndarray) -> None:
    """Raise `UserError` unless there is one prediction (y, x) of each label, or one of them all."""
    if predicted.shape[1:] != truth.shape[1:] or len(predicted) not in (1, len(truth)):
        raise UserError(
            f"truth: its shape is not that of the predictions ({truth.shape} and "
            f"{predicted.shape}). Fix: give both of the same images, (n, y, x)"
        )


def _require_masks(predicted: np.ndarray, truth: np.ndarray) -> None:
    """Raise `UserError` unless both are bool masks of the same images."""
    _require_alike(predicted, truth)
    for name, mask in (("predicted", predicted), ("truth", truth)):
        if mask.dtype != bool:
            raise UserError(
                f"{name}: it is no bool mask (type {mask.dtype}). Fix: cut it, as in {name} > 0.5"
            )


@dataclass(frozen=True)
class Metric:
    """Metric function of predicted maps and label maps, with flags for the inputs that it needs.

    Attributes:
        function: function of predictions and labels (n, y, x) that returns scores (n,) float64.
            The function of a partial metric takes the covariates as a third argument.
        partial: whether the covariates are regressed out of predictions and labels, so that a
            prediction of position alone has no score.
        continuous: whether predictions of a mask are scored as they are, without a cut; otherwise
            the function takes bool masks.  It does not matter for other properties.
    """

    function: Callable[..., np.ndarray]
    partial: bool = False
    continuous: bool = False

    def score(self, predicted: np.ndarray, truth: np.ndarray, covariates: np.ndarray) -> np.ndarray:
        """Score each predicted map against its label on the label's measured pixels, (n,).

        Args:
            predicted: predictions (n, y, x), or (1, y, x) for one prediction of all images.
            truth: labels (n, y, x); floats with NaN at pixels that were not measured.
            covariates: maps that partial metrics regress out, (covariate, y, x), as
                `position_covariates` returns them.

        Returns:
            (n,) float64.
        """
        if self.partial:
            return score_measured(self.function, predicted, truth, covariates)
        return score_measured(self.function, predicted, truth)


METRICS: dict[str, Metric] = {
    "dice": Metric(dice),
    "iou": Metric(iou),
    "auroc": Metric(auroc, continuous=True),
    "average_precision": Metric(average_precision, continuous=True),
    "spearman": Metric(spearman),
    "pearson": Metric(pearson),
    "rmse": Metric(rmse),
    "spearman_partial": Metric(partial_spearman, partial=True),
    "pearson_partial": Metric(partial_pearson, partial=True),
}
"""Registered metrics by name."""


def register_metric(name: str, metric: Metric) -> Metric:
    """Register a metric, so that properties may name it.

    Raises:
        ValueError: another metric has this name.
    """
    if name in METRICS:
        raise ValueError(f"metric {name!r}: the name is taken. Fix: choose another.")
    METRICS[name] = metric
    REGISTERED_METRICS.add(name)
    return metric


def score_maps(
    prop: str,
    predicted: np.ndarray,
    truth: np.ndarray,
    mean_map: np.ndarray,
    grid: tuple[int, int] | None = None,
    cut: float | None = None,
    known: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Score predicted maps of the image's size in every metric of a property.

    Args:
        prop: name of a property.
        predicted: predictions (n, y, x), or (1, y, x) for one prediction of all images, which is
            then ranked or sorted only once; for a mask, bool or values on any scale.
        truth: labels (n, y, x); bool for a mask, else values; floats with NaN at pixels that were
            not measured.
        mean_map: mean label of the training samples, (y, x).  Partial metrics regress it out.
        grid: number of tokens down and across, if the predictions are constant on the tokens'
            blocks of pixels.  Partial metrics then regress out the block means of the mean map too.
        cut: value above which the prediction of a mask counts as foreground; needed unless the
            prediction is bool.
        known: scores (n,) by metric that were computed in another way; the metric is not computed.

    Returns:
        (metric, n) float64.

    Raises:
        ValueError: values are given for a mask without a cut.
    """
    record, covariates = property_of(prop), position_covariates(mean_map, grid)
    regions = cut_mask(predicted, cut) if record.is_mask else predicted
    rows = []
    for name in record.metrics:
        if known is not None and name in known:
            rows.append(known[name])
            continue
        maps = predicted if METRICS[name].continuous else regions
        if name in REGISTERED_METRICS:
            # A registered function takes one prediction for each image.
            maps = np.broadcast_to(maps, truth.shape)
        rows.append(METRICS[name].score(maps, truth, covariates))
    return np.stack(rows)


def cut_mask(predicted: np.ndarray, cut: float | None) -> np.ndarray:
    """Convert a predicted mask to bool, True above `cut`; a bool prediction is unchanged.

    Raises:
        ValueError: the prediction is not bool, and there is no cut.
    """
    if predicted.dtype == bool:
        return predicted
    if cut is None:
        raise ValueError(
            "cut: missing for a continuous prediction of a mask (None). Fix: pass the value above "
            "which a pixel is foreground."
        )
    return np.asarray(predicted > cut)


class HeadlineScorer:
    """Scorer of many predictions against the same labels, in the property's main metric.

    The headline metric is the first that the property names.  If it is the rank correlation, the
    ranks of the labels are computed once.

    Args:
        prop: name of a property.
        truth: labels (n, y, x); bool for a mask, else values; floats with NaN at pixels that were
            not measured.
    """

    def __init__(self, prop: str, truth: np.ndarray) -> None:
        self.truth = truth
        self.metric = property_of(prop).metrics[0]
        ranked = self.metric == "spearman" and measured(truth) is None
        self.ranked = RankedMaps(flatten_maps(truth)) if ranked else None

    def score(self, predicted: np.ndarray, first: int = 0) -> np.ndarray:
        """Score predicted maps in the main metric.

        Predictions are scored as they are, without a cut.  The scores equal the first row of
        `score_maps`.

        Args:
            predicted: predictions of consecutive labels, (n, y, x).
            first: index of the first of these labels.

        Returns:
            (n,) float64.
        """
        if self.ranked is not None:
            return self.ranked.correlation(flatten_maps(predicted), first)
        truth = self.truth[first : first + len(predicted)]
        return score_measured(METRICS[self.metric].function, predicted, truth)


def ratio_or_one(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide elementwise; the result is 1 wherever the denominator is 0."""
    empty = denominator == 0
    return np.where(empty, 1.0, numerator / np.where(empty, 1, denominator))


def mean_of_defined(
    scores: np.ndarray, axis: int = -1, otherwise: float = float("nan")
) -> np.ndarray:
    """Average the finite scores along an axis; the result is `otherwise` where there are none."""
    defined = np.isfinite(scores)
    count = defined.sum(axis)
    total = np.where(defined, scores, 0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), otherwise)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Pearson correlations (n,) of the rows of two arrays (n, pixel), row by row."""
    constant = (a.min(1) == a.max(1)) | (b.min(1) == b.max(1))
    a, b = (np.subtract(flat, flat.mean(1, dtype=float)[:, None], dtype=float) for flat in (a, b))
    covariance = np.einsum("ij,ij->i", *np.broadcast_arrays(a, b))
    norms = np.sqrt(np.einsum("ij,ij->i", a, a)) * np.sqrt(np.einsum("ij,ij->i", b, b))
    return covariance / np.where(constant, np.nan, norms)
