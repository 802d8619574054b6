"""Where probes should fail, and what position alone explains."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.metrics import dice


def derange(index: np.ndarray, seed: int) -> np.ndarray:
    """The same sample indices in another order, none left in its own place where avoidable.

    A cyclic shift of a random order: every sample gets another one's label.
    """
    order = np.random.default_rng(seed).permutation(len(index))
    partner = np.empty(len(index), dtype=index.dtype)
    partner[order] = index[np.roll(order, 1)]
    return partner


def position_threshold(mean: np.ndarray, masks: np.ndarray) -> float:
    """Threshold on the training mean mask that gives it the best mean Dice on some masks.

    The position baseline is given its best chance: at 0.5 a mean mask is often empty.

    Args:
        mean: training mean mask (y, x).
        masks: (n, y, x) bool, the training masks or, where they are not kept, those of validation.
    """
    candidates = np.linspace(0, 0.95, 39) * float(mean.max() or 1.0)
    scores = [
        float(dice(np.broadcast_to(mean > cut, masks.shape), masks).mean()) for cut in candidates
    ]
    return float(candidates[int(np.argmax(scores))])


def position_prediction(prop: str, mean: np.ndarray, maps: np.ndarray, count: int) -> np.ndarray:
    """The position baseline's map, the same for every image: (count, y, x).

    Args:
        mean: the training samples' mean label, (y, x).
        maps: (n, y, x) labels that a mask's threshold is chosen by; bool for foreground.
    """
    single = mean > position_threshold(mean, maps) if prop == "foreground" else mean
    return np.broadcast_to(single, (count, *single.shape))
