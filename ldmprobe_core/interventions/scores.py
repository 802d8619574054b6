"""Scores of edited images against their targets."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.metrics import METRICS
from ldmprobe_core.study.properties import InterventionDefaults


def score_maps_against_targets(
    defaults: InterventionDefaults, maps: np.ndarray, target_maps: np.ndarray
) -> np.ndarray:
    """Scores (metric, sample) of edited images' label maps against their target maps.

    Args:
        defaults: intervention settings of the property, which name the metrics.
        maps, target_maps: (sample, y, x); bool for a mask, else values.
    """
    return np.stack([METRICS[name].function(maps, target_maps) for name in defaults.metrics])


def background_change(
    before: np.ndarray, after: np.ndarray, object_mask: np.ndarray, target_mask: np.ndarray
) -> np.ndarray:
    """Mean absolute change of pixel values outside both masks.

    Args:
        before, after: images (sample, y, x, rgb) uint8.
        object_mask, target_mask: bool masks (sample, y, x) of the object before the edit, and of
            its target.

    Returns:
        (sample,) float64 in 0..1; NaN if the masks cover the image.
    """
    change = np.abs(before.astype(np.float64) - after).mean(-1) / 255
    background = ~(object_mask | target_mask)
    n_pixels = background.sum((1, 2))
    with np.errstate(invalid="ignore"):
        return np.where(n_pixels > 0, (change * background).sum((1, 2)) / n_pixels, np.nan)
