"""The position baseline, which predicts the same map for every image.

A probe must score above it to show that the activations carry information about the image itself.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.measured import score_measured
from ldmprobe_core.probing.metrics import dice
from ldmprobe_core.study.properties import property_of


def position_threshold(mean: np.ndarray, masks: np.ndarray) -> float:
    """Choose the threshold at which the training mean mask has the highest mean Dice on `masks`.

    A fixed threshold of 0.5 would often give an empty mask, and so a baseline that is too weak.

    Args:
        mean: training mean mask (y, x), in 0..1.
        masks: (n, y, x) bool, or floats with NaN at pixels that were not measured.  They are the
            training masks, or the validation masks if the run stores no training samples.
    """
    candidates = np.linspace(0, 0.95, 39) * float(mean.max() or 1.0)
    scores = [
        float(score_measured(dice, np.broadcast_to(mean > threshold, masks.shape), masks).mean())
        for threshold in candidates
    ]
    return float(candidates[int(np.argmax(scores))])


def position_prediction(prop: str, mean: np.ndarray, maps: np.ndarray, count: int) -> np.ndarray:
    """Predict the same map for every image, from the mean label of the training samples.

    Args:
        prop: name of a property.
        mean: mean label of the training samples, (y, x).
        maps: label maps (n, y, x); a mask's threshold is chosen on them.
        count: number of images.

    Returns:
        (count, y, x): the thresholded mean label, bool, for a mask; else the mean label itself.
    """
    is_mask = property_of(prop).is_mask
    single = mean > position_threshold(mean, maps) if is_mask else mean
    return np.broadcast_to(single, (count, *single.shape))
