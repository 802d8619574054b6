"""Scores of the draws of controls that are fitted repeatedly, such as shuffled labels."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.batching import different_shuffles
from ldmprobe_core.study.conditions import CONDITIONS


def different_draws(run: Run, prop: str, name: str) -> np.ndarray:
    """Read the scores of each draw of a control, all undefined if draws must be repetitions.

    Few training samples have fewer different permutations of their labels than there are draws.  A
    permutation that is counted several times would make p values too small.

    Args:
        run: a finished run.
        prop: name of the property.
        name: name of the control, a repeated condition.

    Returns:
        scores in the main metric, (draw, step, probe input, held-out sample) float64; NaN if
        undefined.
    """
    scores = run.read(f"scores/{prop}", f"{name}_draws").astype(np.float64)
    shuffled = CONDITIONS[name].assignment == "shuffled"
    if shuffled and different_shuffles(run.study, run.samples) < len(scores):
        scores[:] = np.nan
    return scores
