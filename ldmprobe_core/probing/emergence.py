"""Onset and settled steps: the records, and the rule that finds the steps in a curve of scores.

The relative gain at step t is (s(t) - b) / (s(T) - b), where s is the score, b the score of the
position baseline and T the last step.  Each is a mean over the samples for which all three are
defined.  The *onset* is the first step from which the gain stays at 0.5 or above, and the *settled*
step is the first from which it stays at 0.9 or above.  Without the baseline, a property whose map
depends on position alone would seem to emerge at step 1.

`bootstrap.Bootstrap.emergence` and `bootstrap.Bootstrap.lead` compute the records.
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
    """Find the step from which each curve keeps at least a share of its full gain.

    A step does not reach the share if its gain is undefined or its full gain is not positive.

    Args:
        gains: score minus baseline, (curve, step); NaN if undefined.
        full: gain of the last step, over the samples that define the gain of each step,
            (curve, step).
        share: required fraction of the full gain, 0..1.

    Returns:
        steps counted from 1, (curve,) int; the last step if the curve ends below its baseline.
    """
    with np.errstate(invalid="ignore"):
        reached = (full > 0) & (gains >= share * full)
    reached[:, -1] = True
    stays = np.logical_and.accumulate(reached[:, ::-1], axis=1)[:, ::-1]
    return stays.argmax(1) + 1
