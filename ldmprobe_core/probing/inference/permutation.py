"""Permutation p value of the best score over layers and steps."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.metrics import mean_of_defined


def permutation_p(probe: np.ndarray, draws: np.ndarray) -> float | None:
    """Compute the best probe's permutation p value, corrected for choosing its layer and step.

    In each permutation, the probes of all cells are fitted to labels of other images.  Its
    statistic is the largest mean score over all cells (the maximum statistic of Westfall & Young
    1993), so the p value holds however the cell was chosen.

    Args:
        probe: scores of the probe's best cell, (test sample,).
        draws: scores of all permutations, (draw, step, layer, test sample).

    Returns:
        the p value; None if no score of the probe is defined.
    """
    largest = mean_of_defined(draws, otherwise=-np.inf).max((1, 2))
    observed = mean_of_defined(probe)
    if not np.isfinite(observed):
        return None
    return float((1 + (largest >= observed).sum()) / (1 + len(largest)))
