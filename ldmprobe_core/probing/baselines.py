"""The position baseline: a prediction that depends on a pixel's position only."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.measured import score_measured
from ldmprobe_core.probing.metrics import dice
from ldmprobe_core.study.properties import property_of


def position_threshold(mean: np.ndarray, masks: np.ndarray) -> float:
    """Threshold of the training mean mask with the highest mean Dice on `masks`.

    A fixed threshold of 0.5 would often leave the mean mask empty and the baseline too weak.

    Args:
        mean: training mean mask (y, x), in 0..1.
        masks: (n, y, x) bool, or floats with NaN where not measured: the training masks, or those
            of validation if a run does not store its training samples.
    """
    candidates = np.linspace(0, 0.95, 39) * float(mean.max() or 1.0)
    scores = [
        float(score_measured(dice, np.broadcast_to(mean > threshold, masks.shape), masks).mean())
        for threshold in candidates
    ]
    return float(candidates[int(np.argmax(scores))])


def position_prediction(prop: str, mean: np.ndarray, maps: np.ndarray, count: int) -> np.ndarray:
    """Prediction of the position baseline, the same map for every image.

    Args:
        prop: name of a property.
        mean: mean label of the training samples, (y, x).
        maps: (n, y, x) label maps on which a mask's threshold is chosen; bool for a mask.
        count: number of images.

    Returns:
        (count, y, x): bool for a mask, else the mean label itself.
    """
    is_mask = property_of(prop).is_mask
    single = mean > position_threshold(mean, maps) if is_mask else mean
    return np.broadcast_to(single, (count, *single.shape))
