"""Onset and settled steps: records, and the rule that finds the step in a curve of scores.

With score s(t) at step t, position baseline b and last step T, gain(t) = (s(t) - b) / (s(T) - b),
each a mean over the samples for which all three are defined.
*Onset* is the first step from which the gain stays at 0.5 or more, *settled* the same with 0.9.
Without the baseline, a map that position already explains would "emerge" at step 1.

`bootstrap.Bootstrap.emergence` and `bootstrap.Bootstrap.lead` fill the records, with intervals.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

ONSET, SETTLED = 0.5, 0.9


class Step(BaseModel):
    """Step (from 1) with the ends of its bootstrap interval; all None if the step is undefined."""

    step: int | None
    low: int | None
    high: int | None


class Lead(BaseModel):
    """Number of steps by which one curve precedes another, with its paired bootstrap interval.

    Negative if it follows the other; all None if the step of either curve is undefined.
    """

    steps: int | None
    low: int | None
    high: int | None


class Leads(BaseModel):
    """Leads of one curve over another at the onset and at the settled step."""

    onset: Lead
    settled: Lead


class Emergence(BaseModel):
    """Steps from which a property keeps 50 % (onset) and 90 % (settled) of its gain."""

    onset: Step
    settled: Step


def stays_from(gains: np.ndarray, full: np.ndarray, share: float) -> np.ndarray:
    """First step (from 1) from which each curve keeps ``share`` or more of its full gain.

    Args:
        gains: (curve, step) score less baseline, NaN where undefined (which counts as below).
        full: (curve, step) the last step's gain over the same samples; a step whose full gain is
            not positive counts as below.

    Returns:
        (curve,) int; the last step for a curve whose last score does not exceed its baseline.
    """
    with np.errstate(invalid="ignore"):
        reached = (full > 0) & (gains >= share * full)
    reached[:, -1] = True
    stays = np.logical_and.accumulate(reached[:, ::-1], axis=1)[:, ::-1]
    return stays.argmax(1) + 1
