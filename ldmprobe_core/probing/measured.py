"""Pixels of label maps that were measured; the others are NaN, and left out of fits and scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def measured(maps: np.ndarray) -> np.ndarray | None:
    """Which pixels of label maps were measured, as bool of the same shape; None if all were.

    Args:
        maps: bool, or floats with NaN where not measured.
    """
    if maps.dtype.kind != "f":
        return None
    known = ~np.isnan(maps)
    return None if known.all() else known


def partly_measured(maps: np.ndarray) -> np.ndarray | None:
    """Which maps (n, y, x) have pixels that were not measured, (n,) bool; None if none has."""
    known = measured(maps)
    return None if known is None else np.asarray(~known.all((1, 2)))


def missing_share(maps: np.ndarray) -> float:
    """Share of the pixels of label maps that were not measured."""
    known = measured(maps)
    return 0.0 if known is None else float(1 - known.mean())


def mean_map(maps: np.ndarray) -> np.ndarray:
    """Mean of label maps (n, y, x) over the measured ones at each pixel, (y, x) float64.

    A pixel that was measured in no map gets the mean of all measured pixels.
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
    """Number of measured pixels in each token's block, (n, *grid) float64; None if all were."""
    known = measured(maps)
    if known is None:
        return None
    n, height, width = maps.shape
    y, x = grid
    return known.reshape(n, y, height // y, x, width // x).sum((2, 4), dtype=np.float64)


def score_measured(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    predicted: np.ndarray,
    truth: np.ndarray,
) -> np.ndarray:
    """Scores (n,) of maps on the measured pixels of their labels.

    Args:
        function: of predictions and labels (n, y, x), such as `metrics.dice`; maps with pixels that
            were not measured are given to it one at a time, as (1, 1, measured pixel).
        predicted: (n, y, x); bool if the labels are masks.
        truth: (n, y, x); bool, or floats with NaN where not measured.
    """
    partly = partly_measured(truth)
    if partly is None:
        return function(predicted, truth)
    scores = np.full(len(truth), np.nan)
    for i, (guess, label) in enumerate(zip(predicted, truth, strict=True)):
        known = ~np.isnan(label)
        if known.any():
            dtype = bool if predicted.dtype == bool else label.dtype
            pixels = label[known].astype(dtype)
            scores[i] = function(guess[known][None, None], pixels[None, None])[0]
    return scores
