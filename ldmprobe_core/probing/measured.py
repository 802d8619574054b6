"""Handling of label maps in which some pixels were not measured.

The pixels that were not measured are NaN.  Fits and scores use only the other pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def measured(maps: np.ndarray) -> np.ndarray | None:
    """Mark the measured (non-NaN) pixels of label maps; None if all pixels were measured.

    Args:
        maps: bool, or floats with NaN at pixels that were not measured.

    Returns:
        bool array of the same shape, True at measured pixels; None if all pixels were measured.
    """
    if maps.dtype.kind != "f" or not _has_nan(maps):
        return None
    return ~np.isnan(maps)


def _has_nan(maps: np.ndarray) -> bool:
    """Return whether a float array has a NaN, several times faster than by `numpy.isnan`."""
    if not maps.size:
        return False
    if maps.dtype != np.float16:
        return bool(np.isnan(maps.min()))
    # NumPy compares float16 values one by one, but integers many at once.  Without its sign bit,
    # the integer of a NaN is above that of infinity.
    return bool((maps.view(np.uint16) & 0x7FFF).max() > 0x7C00)


def partly_measured(maps: np.ndarray) -> np.ndarray | None:
    """Mark the maps (n, y, x) that have unmeasured pixels, (n,) bool; None if there are none."""
    known = measured(maps)
    return None if known is None else np.asarray(~known.all((1, 2)))


def missing_share(maps: np.ndarray) -> float:
    """Compute the fraction, 0..1, of label pixels that were not measured."""
    known = measured(maps)
    return 0.0 if known is None else float(1 - known.mean())


def constant_value(maps: np.ndarray) -> float | None:
    """Return the value of all measured pixels of label maps (n, y, x); None if they vary.

    It is None if no pixel was measured, too.
    """
    lowest, highest = np.inf, -np.inf
    for one in maps:
        lowest = min(lowest, float(np.fmin.reduce(one, axis=None)))
        highest = max(highest, float(np.fmax.reduce(one, axis=None)))
        if lowest < highest:
            return None
    return lowest if lowest == highest else None


def mean_map(maps: np.ndarray) -> np.ndarray:
    """Average label maps (n, y, x) over the images at each pixel, (y, x) float64.

    Only the maps in which a pixel was measured count towards its mean.  A pixel that was measured
    in no map gets the mean of all measured pixels.
    """
    known = measured(maps)
    if known is None:
        return np.asarray(maps.mean(0, dtype=np.float64))
    values = np.where(known, maps, 0)
    count = known.sum(0)
    total = values.sum(0, dtype=np.float64)
    everywhere = total.sum() / max(int(count.sum()), 1)
    return np.where(count > 0, total / np.maximum(count, 1), everywhere)


def block_counts(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray | None:
    """Count the measured pixels in each token's block, (n, *grid) float64.

    Returns None if all pixels were measured.
    """
    known = measured(maps)
    if known is None:
        return None
    n, height, width = maps.shape
    y, x = grid
    return known.reshape(n, y, height // y, x, width // x).sum((2, 4), dtype=np.float64)


def score_measured(
    function: Callable[..., np.ndarray],
    predicted: np.ndarray,
    truth: np.ndarray,
    *covariates: np.ndarray,
) -> np.ndarray:
    """Score predictions only at the pixels where the label was measured.

    Args:
        function: metric of predictions and labels (n, y, x), such as `metrics.dice`.  A map with
            unmeasured pixels is passed to it alone, as an array (1, 1, measured pixel).
        predicted: predictions (n, y, x), or (1, y, x) for one prediction of all images; bool if the
            labels are masks.
        truth: labels (n, y, x); bool, or floats with NaN at pixels that were not measured.
        covariates: further arguments of `function`, each (covariate, y, x), such as the maps that
            a partial metric regresses out.  They are restricted to the same pixels.

    Returns:
        scores (n,); NaN for a label without measured pixels.
    """
    partly = partly_measured(truth)
    if partly is None:
        # A mask is float if others of its array have unmeasured pixels.
        dtype = bool if predicted.dtype == bool else truth.dtype
        return function(predicted, truth.astype(dtype, copy=False), *covariates)
    scores = np.full(len(truth), np.nan)
    every = np.broadcast_to(predicted, truth.shape)
    for i, (guess, label) in enumerate(zip(every, truth, strict=True)):
        known = ~np.isnan(label)
        if known.any():
            dtype = bool if predicted.dtype == bool else label.dtype
            pixels = label[known].astype(dtype)
            others = [maps[:, known][:, None] for maps in covariates]
            scores[i] = function(guess[known][None, None], pixels[None, None], *others)[0]
    return scores
