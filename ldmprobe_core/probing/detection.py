"""Scores of continuous predictions of masks: AUROC, average precision, and Dice at the best cut.

A cut is the value above which a prediction counts as foreground.  AUROC and average precision need
no cut, so they compare predictions on different scales.

A prediction that is constant on blocks of pixels depends on a full-size mask only through the share
of foreground in each block, because all pixels of a block pass a cut together.  A block with share
s then counts as s positives and 1 - s negatives.  Every function takes such shares; for predictions
at full size, a share is a mask's value, 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ldmprobe_core.probing.measured import measured
from ldmprobe_core.probing.ranks import flatten_maps

CANDIDATE_CUTS = 64
"""Number of quantiles of the predictions that are tried as cuts."""


def auroc(predicted: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Compute each image's AUROC from the prediction and foreground share of each pixel or token.

    It is the probability that a foreground pixel is predicted above a background pixel; ties count
    half.

    Args:
        predicted: predictions (n, y, x) or (n, token); bool, or values on any scale.
        share: share of foreground, of the same shape, 0..1 or bool.

    Returns:
        (n,) float64, 0.5 for a constant prediction; NaN where a mask is empty or full, or a
        prediction is non-finite.
    """
    scores = np.full(len(predicted), np.nan)
    for i, positive, negative in _counts_by_value(predicted, share):
        lower = np.cumsum(negative) - negative
        pairs = positive.sum() * negative.sum()
        scores[i] = (positive * (lower + negative / 2)).sum() / pairs
    return scores


def average_precision(predicted: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Compute each image's average precision: precision times increase of recall, over cuts.

    Args:
        predicted, share: as in `auroc`.

    Returns:
        (n,) float64; for a constant prediction, the share of foreground in the image.  NaN where a
        mask is empty or full, or a prediction is non-finite.
    """
    scores = np.full(len(predicted), np.nan)
    for i, positive, negative in _counts_by_value(predicted, share):
        # Precision is cumulative from the highest predicted value down, so reverse the ascending
        # counts.
        positive, negative = positive[::-1], negative[::-1]
        hits = np.cumsum(positive)
        precision = hits / (hits + np.cumsum(negative))
        scores[i] = (positive * precision).sum() / positive.sum()
    return scores


def _counts_by_value(
    predicted: np.ndarray, share: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Count foreground and background pixels at each distinct predicted value, in ascending order.

    Yields:
        index of the sample, positives and negatives, (distinct value,) each; nothing for a sample
        whose scores are undefined.
    """
    rows = zip(flatten_maps(predicted), flatten_maps(share).astype(np.float64), strict=True)
    for i, (values, shares) in enumerate(rows):
        if np.isfinite(values).all() and 0 < shares.mean() < 1:
            _, index = np.unique(values, return_inverse=True)
            yield i, np.bincount(index, shares), np.bincount(index, 1 - shares)


def dice_at(
    predicted: np.ndarray,
    share: np.ndarray,
    cuts: np.ndarray,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the Dice coefficient of predictions at each cut; 1 if both masks are empty.

    Args:
        predicted: (n, token), or (1, token) for one prediction of all images; a token is
            foreground where its value exceeds the cut.
        share: (n, token) share of foreground among the measured pixels, 0..1; NaN for a token
            without measured pixels.
        cuts: (cut,).
        weight: number of measured pixels of each token, (n, token); None if all were measured.

    Returns:
        (cut, n) float64.
    """
    scores = np.empty((len(cuts), len(share)))
    for i, truth in enumerate(share):
        # If one prediction serves all images, sort it only for the first image.
        if i < len(predicted):
            order = np.argsort(predicted[i])
            first_above = np.searchsorted(predicted[i][order], cuts, side="right")
        size = np.ones(len(truth)) if weight is None else weight[i].astype(np.float64)
        hits = np.where(size > 0, truth, 0) * size
        overlap = _sums_from(hits[order])[first_above]
        both = _sums_from(size[order])[first_above] + hits.sum()
        scores[:, i] = np.where(both > 0, 2 * overlap / np.where(both > 0, both, 1), 1.0)
    return scores


def _sums_from(values: np.ndarray) -> np.ndarray:
    """Return the sum of `values` from each index to the end, (value + 1,); the last sum is 0."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)


def best_cut(predicted: np.ndarray, share: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Choose the cut (foreground threshold) with the best mean Dice over several images.

    The same rule serves probes, controls and the position baseline, so that none of them is judged
    at a cut that suits another.  Candidates are quantiles of the predictions, so the rule does not
    depend on their scale.

    Args:
        predicted, share, weight: as in `dice_at`; non-finite predictions are not used.

    Returns:
        the first of the best candidates; 0 if no prediction can be used.
    """
    usable = np.isfinite(predicted).all(1)
    if not usable.any():
        return 0.0
    if len(predicted) == len(share):
        share, weight = share[usable], None if weight is None else weight[usable]
    predicted = predicted[usable]
    levels = np.linspace(0, 1, CANDIDATE_CUTS, endpoint=False)
    cuts = np.unique(np.quantile(predicted, levels))
    # Also try a cut below all predicted values, at which every pixel counts as foreground.
    cuts = np.concatenate([[np.nextafter(cuts[0], -np.inf)], cuts])
    return float(cuts[dice_at(predicted, share, cuts, weight).mean(1).argmax()])


def position_cut(mean: np.ndarray, masks: np.ndarray) -> float:
    """Choose the foreground threshold (cut) of the baseline that always predicts the mean mask.

    A fixed cut of 0.5 would often give an empty mask, and so a baseline that is too weak.

    Args:
        mean: training mean mask (y, x), in 0..1.
        masks: (n, y, x) bool, or floats with NaN at pixels that were not measured.  They are the
            training masks, or the validation masks if the run stores no training samples.
    """
    known = measured(masks)
    weight = None if known is None else flatten_maps(known)
    return best_cut(mean.reshape(1, -1), flatten_maps(masks), weight)
