"""Scores of continuous predictions of masks: AUROC, average precision, thresholded Dice.

A cut is the value above which a prediction counts as foreground.  AUROC and average precision need
no cut, so they compare predictions on different scales.

A prediction that is constant on blocks of pixels depends on a full-size mask only through the share
of foreground in each block, because all pixels of a block pass a cut together.  A block with share
s then counts as s positives and 1 - s negatives.  Every function takes such shares; for predictions
at full size, a share is a mask's value, 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.probing.measured import measured
from ldmprobe_core.probing.ranks import flatten_maps, iter_chunks

CANDIDATE_CUTS = 64
"""Number of quantiles of the predictions that are tried as cuts."""


def auroc(predicted: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Compute each image's AUROC from a prediction and a foreground share for each pixel or token.

    It is the probability that a foreground pixel is predicted above a background pixel; ties count
    half.

    Args:
        predicted: predictions (n, y, x) or (n, token); bool, or values on any scale.  One
            prediction of all images may be given as (1, y, x) or (1, token).
        share: share of foreground, (n, y, x) or (n, token), 0..1 or bool.

    Returns:
        (n,) float64, 0.5 for a constant prediction; NaN where a mask is empty or full, or a
        prediction is non-finite.
    """
    scores = np.full(len(share), np.nan)
    for rows, sums in _sums_by_value(predicted, share):
        below = sums.negatives_below + sums.negatives_tied / 2
        pairs = sums.positives.sum(1) * sums.negatives
        scores[rows] = (sums.positives * below).sum(1) / pairs
    return scores


def average_precision(predicted: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Compute each image's average precision: the sum of precision times the increase in recall.

    Args:
        predicted, share: as in `auroc`.

    Returns:
        (n,) float64; for a constant prediction, the share of foreground in the image.  NaN where a
        mask is empty or full, or a prediction is non-finite.
    """
    scores = np.full(len(share), np.nan)
    for rows, sums in _sums_by_value(predicted, share):
        total = sums.positives.sum(1)
        # The predicted positives at a threshold are the pixels with a prediction at or above it.
        hits = total[:, None] - sums.positives_below
        false_alarms = sums.negatives[:, None] - sums.negatives_below
        scores[rows] = (sums.positives * hits / (hits + false_alarms)).sum(1) / total
    return scores


@dataclass(frozen=True)
class _SumsByValue:
    """Cumulative sums of foreground and background over tokens sorted by predicted value.

    An entry is a token or, if all images share one prediction, all tokens with the same value.

    Attributes:
        positives: share of foreground of each entry, (n, entry).
        positives_below: sum of the foreground of all tokens with smaller values, (n, entry).
        negatives_below: the same of the background, (n, entry).
        negatives_tied: sum of the background of all tokens with the same value, (n, entry).
        negatives: sum of the background of all tokens, (n,).
    """

    positives: np.ndarray
    positives_below: np.ndarray
    negatives_below: np.ndarray
    negatives_tied: np.ndarray
    negatives: np.ndarray


def _sums_by_value(
    predicted: np.ndarray, share: np.ndarray
) -> Iterator[tuple[np.ndarray, _SumsByValue]]:
    """Yield the image indices and `_SumsByValue` of a few images at a time.

    Images whose scores are undefined are left out.
    """
    values, shares = flatten_maps(predicted), flatten_maps(share)
    start, finite = 0, np.broadcast_to(np.isfinite(values).all(1), len(shares))
    shared = _SharedPrediction(values[0]) if len(values) == 1 and finite.all() else None
    for chunk in iter_chunks(shares):
        part = chunk.astype(np.float64)
        mean, rows = part.mean(1), slice(start, start + len(chunk))
        defined = finite[rows] & (mean > 0) & (mean < 1)
        if defined.any():
            of_part = part[defined]
            sums = shared.sums(of_part) if shared else _sort_and_sum(values[rows][defined], of_part)
            yield start + np.flatnonzero(defined), sums
        start += len(chunk)


class _SharedPrediction:
    """One prediction of all images, whose values are sorted once.

    Args:
        values: predicted value of each token, (token,), finite.
    """

    def __init__(self, values: np.ndarray) -> None:
        _, self._group, self._size = np.unique(values, return_inverse=True, return_counts=True)

    def sums(self, shares: np.ndarray) -> _SumsByValue:
        """Compute `_SumsByValue` of shares (n, token), with one entry for each distinct value."""
        count = len(self._size)
        positives = np.stack([np.bincount(self._group, row, count) for row in shares])
        negatives = self._size - positives
        return _SumsByValue(
            positives,
            positives.cumsum(1) - positives,
            negatives.cumsum(1) - negatives,
            negatives,
            negatives.sum(1),
        )


def _sort_and_sum(values: np.ndarray, shares: np.ndarray) -> _SumsByValue:
    """Sort tokens by predicted value and compute `_SumsByValue`; both arrays are (n, token)."""
    order = values.argsort(1)
    values, positives = (np.take_along_axis(rows, order, 1) for rows in (values, shares))
    index = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    changes = values[:, 1:] != values[:, :-1]
    # Tokens with equal values (ties) form a group; `first` and `last` are the indices of its ends.
    edge = np.ones((len(values), 1), bool)
    starts, ends = np.hstack([edge, changes]), np.hstack([changes, edge])
    first = np.maximum.accumulate(np.where(starts, index, 0), 1)
    last = np.minimum.accumulate(np.where(ends, index, values.shape[1])[:, ::-1], 1)[:, ::-1]
    zero = np.zeros((len(values), 1))
    hits = np.hstack([zero, positives.cumsum(1)])
    misses = np.hstack([zero, (1 - positives).cumsum(1)])
    below = np.take_along_axis(misses, first, 1)
    return _SumsByValue(
        positives,
        np.take_along_axis(hits, first, 1),
        below,
        np.take_along_axis(misses, last + 1, 1) - below,
        misses[:, -1],
    )


def dice_at(
    predicted: np.ndarray,
    share: np.ndarray,
    cuts: np.ndarray,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the Dice coefficient at each threshold (cut); 1 if both masks are empty.

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
    ascending = np.argsort(cuts)
    # `passed` is the number of cuts that a value exceeds.  Tokens that pass the same cuts are
    # summed together, so that the values are not sorted.
    passed = cuts[ascending].searchsorted(predicted)
    if len(predicted) == 1 and share.dtype == bool and weight is None:
        # Count the pixels of one mask at a time, because these may be masks of the image's size.
        hits, area = (
            np.stack([np.bincount(row, minlength=len(cuts) + 1) for row in rows])
            for rows in ([passed[0][mask] for mask in share], passed)
        )
    else:
        shares = share if weight is None else np.where(weight > 0, share, 0) * weight
        hits = _sums_by_group(passed, shares, len(cuts) + 1)
        area = _sums_by_group(passed, np.ones((1, 1)) if weight is None else weight, len(cuts) + 1)
    overlap, both = _sums_above(hits), _sums_above(area) + hits.sum(1, keepdims=True)
    dice = np.where(both > 0, 2 * overlap / np.where(both > 0, both, 1), 1.0).T
    return np.asarray(dice[np.argsort(ascending)])


def _sums_by_group(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sum the values of each group of tokens, for each image.

    Args:
        groups: group of each token, (n, token), or (1, token) for the same in all images.
        values: (n, token), or (1, 1) for the same at all tokens.
        count: number of groups.

    Returns:
        (n, group) float64.
    """
    n = max(len(groups), len(values))
    shape = n, groups.shape[1]
    index = (groups + count * np.arange(n)[:, None]).ravel()
    weights = np.broadcast_to(values, shape).ravel()
    return np.bincount(index, weights, count * n).reshape(n, count)


def _sums_above(sums: np.ndarray) -> np.ndarray:
    """Sum the entries after each entry of a row, but the last, (n, entry - 1)."""
    return np.asarray(sums[:, ::-1].cumsum(1)[:, ::-1][:, 1:])


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
    cuts = np.unique(quantiles(predicted, levels))
    # Also try cuts at which every pixel is foreground, or none: where many masks are empty, to
    # predict nothing may be best.  That cut is the last, so that a tie goes to another one.
    cuts = np.concatenate([[np.nextafter(cuts[0], -np.inf)], cuts, [predicted.max()]])
    return float(cuts[dice_at(predicted, share, cuts, weight).mean(1).argmax()])


def quantiles(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Compute quantiles of all values, as `numpy.quantile` does, several times faster.

    NumPy partitions the values at every level; sorting them is faster if there are many levels.

    Args:
        values: finite values of any shape.
        levels: (level,), 0..1.
    """
    ordered = np.sort(values, axis=None)
    at = levels * (ordered.size - 1)
    low = np.floor(at).astype(int)
    share = at - low
    below, above = ordered[low], ordered[np.minimum(low + 1, ordered.size - 1)]
    step = above - below
    # Interpolate from the nearer value, as NumPy does, so that the results have the same bits.
    return np.where(share < 0.5, below + step * share, above - step * (1 - share))


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
