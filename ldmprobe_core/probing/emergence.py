"""Steps at which a property emerges; `bootstrap.Bootstrap` computes them with intervals.

With score s(t) at step t, position baseline b and last step T, gain(t) = (s(t) - b) / (s(T) - b),
each mean over the samples for which all three are defined.
*Onset* is the first step from which the gain stays at 0.5 or more, *settled* the same with 0.9.
Without the baseline, a map that position already explains would "emerge" at step 1.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

ONSET, SETTLED = 0.5, 0.9


class Step(BaseModel):
    """A step (from 1) and its bootstrap interval; None where it is undefined."""

    step: int | None
    low: int | None
    high: int | None


class Lead(BaseModel):
    """By how many steps one curve is there before another, paired; None where either never is."""

    steps: int | None
    low: int | None
    high: int | None


class Leads(BaseModel):
    """Lead at half and at nine tenths of the gain."""

    onset: Lead
    settled: Lead


class Emergence(BaseModel):
    """When a property is there: half of its gain over position, and nine tenths of it."""

    onset: Step
    settled: Step


def stays_from(gains: np.ndarray, full: np.ndarray, share: float) -> np.ndarray:
    """First step (from 1) from which each curve keeps ``share`` or more of its full gain.

    Args:
        gains: (curve, step) score less baseline, NaN where undefined (which counts as below).
        full: (curve, step) the last step's gain over the same samples; a step whose full gain is
            not positive counts as below.

    Returns:
        (curve,) int; the last step where a curve's own end does not clear its baseline.
    """
    with np.errstate(invalid="ignore"):
        reached = (full > 0) & (gains >= share * full)
    reached[:, -1] = True
    stays = np.logical_and.accumulate(reached[:, ::-1], axis=1)[:, ::-1]
    return stays.argmax(1) + 1
