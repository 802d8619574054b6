"""Scores of edited images against their targets."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.metrics import METRICS
from ldmprobe_core.study.properties import InterventionDefaults


def score_maps_against_targets(
    defaults: InterventionDefaults, maps: np.ndarray, target_maps: np.ndarray
) -> np.ndarray:
    """Scores (metric, sample) of the maps of edited images against their targets.

    Args:
        defaults: names the metrics.
        maps, target_maps: (sample, y, x); bool for a mask, else values.
    """
    return np.stack([METRICS[name].function(maps, target_maps) for name in defaults.metrics])


def background_change(
    before: np.ndarray, after: np.ndarray, own: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Mean absolute change of pixels (sample,), in 0..1, where neither mask is; NaN where none is.

    Args:
        before, after: images (sample, y, x, rgb) uint8.
        own, wanted: masks (sample, y, x): where the object was, and where it is aimed.
    """
    gap = np.abs(before.astype(np.float64) - after).mean(-1) / 255
    outside = ~(own | wanted)
    number = outside.sum((1, 2))
    with np.errstate(invalid="ignore"):
        return np.where(number > 0, (gap * outside).sum((1, 2)) / number, np.nan)
