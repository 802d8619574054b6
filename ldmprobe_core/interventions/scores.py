"""Scores that tell whether an edited image follows its target and stays the same elsewhere."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.metrics import METRICS
from ldmprobe_core.study.properties import InterventionDefaults


def score_maps_against_targets(
    defaults: InterventionDefaults, maps: np.ndarray, target_maps: np.ndarray
) -> np.ndarray:
    """Score the labeler's maps of edited images against the target maps of the edits.

    Args:
        defaults: intervention settings of the property, which name the metrics.
        maps: label maps of the edited images, (sample, y, x); bool for a mask, else values.
        target_maps: target maps, likewise.

    Returns:
        (metric, sample) float64.
    """
    return np.stack([METRICS[name].function(maps, target_maps) for name in defaults.metrics])


def background_change(
    before: np.ndarray, after: np.ndarray, object_mask: np.ndarray, target_mask: np.ndarray
) -> np.ndarray:
    """Measure how much an edit changes the background, as a mean absolute change of pixel values.

    The background is the part of the image outside both masks.

    Args:
        before, after: images (sample, y, x, rgb) uint8.
        object_mask: bool masks of the object before the edit, (sample, y, x).
        target_mask: bool masks of the object's target, (sample, y, x).

    Returns:
        (sample,) float64 in 0..1; NaN if the masks cover the entire image.
    """
    change = np.abs(before.astype(np.float64) - after).mean(-1) / 255
    background = ~(object_mask | target_mask)
    n_pixels = background.sum((1, 2))
    with np.errstate(invalid="ignore"):
        return np.where(n_pixels > 0, (change * background).sum((1, 2)) / n_pixels, np.nan)
