"""Bootstrap intervals over held-out samples, and the steps at which a property emerges.

With score s(t) at step t, position baseline b and last step T, gain(t) = (s(t) - b) / (s(T) - b).
*Onset* is the first step from which the gain stays at 0.5 or more, *settled* the same with 0.9.
Without the baseline, a map that position already explains would "emerge" at step 1.
"""

from __future__ import annotations

import warnings

import numpy as np
from pydantic import BaseModel

ONSET, SETTLED = 0.5, 0.9


class Interval(BaseModel):
    """A mean over samples and its bootstrap interval; None where every sample is undefined."""

    mean: float | None
    low: float | None
    high: float | None

    def above(self, other: Interval) -> bool:
        """This interval lies wholly above the other."""
        return self.low is not None and other.high is not None and self.low > other.high


class Step(BaseModel):
    """A step (from 1) and its bootstrap interval; None where it is undefined."""

    step: int | None
    low: int | None
    high: int | None


class Emergence(BaseModel):
    """When a property is there: half of its gain over position, and nine tenths of it."""

    onset: Step
    settled: Step


class Bootstrap:
    """Resamples of the held-out samples, drawn once and shared, so that comparisons are paired.

    Args:
        samples: how many there are.
        resamples: how many times they are drawn anew, with replacement.
        level: of the intervals, such as 0.95.
        seed: of the drawing.
    """

    def __init__(self, samples: int, resamples: int, level: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.counts = np.stack(
            [
                np.bincount(rng.integers(samples, size=samples), minlength=samples)
                for _ in range(resamples)
            ]
        ).astype(np.float64)
        self.level = level
        self.tails = (50 * (1 - level), 100 - 50 * (1 - level))

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean over defined samples in every resample.

        Args:
            values: (..., sample), NaN where undefined.

        Returns:
            (resample, ...); NaN where a resample holds no defined sample.
        """
        defined = np.isfinite(values)
        total = self.counts @ np.moveaxis(np.where(defined, values, 0), -1, 0).reshape(
            values.shape[-1], -1
        )
        number = self.counts @ np.moveaxis(defined, -1, 0).reshape(values.shape[-1], -1)
        with np.errstate(invalid="ignore"):
            return (total / number).reshape(len(self.counts), *values.shape[:-1])

    def interval(self, values: np.ndarray) -> Interval:
        """Mean of values (sample,) and its percentile interval; NaN samples are left out."""
        if not np.isfinite(values).any():
            return Interval(mean=None, low=None, high=None)
        low, high = np.nanpercentile(self.means(values), self.tails)
        return Interval(mean=float(np.nanmean(values)), low=float(low), high=float(high))

    def emergence(self, scores: np.ndarray, baseline: np.ndarray) -> Emergence:
        """Onset and settled steps of a curve, recomputed in every resample.

        Undefined (None) where the last step's score does not clear the baseline, that is, where
        the interval of their difference reaches zero.

        Args:
            scores: (step, sample).
            baseline: (sample,), the position baseline in the same metric.
        """
        lead = self.interval(scores[-1] - baseline)
        if lead.low is None or lead.low <= 0:
            nowhere = Step(step=None, low=None, high=None)
            return Emergence(onset=nowhere, settled=nowhere)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a step that no sample defines: NaN
            curve = np.nanmean(scores, axis=-1)
        whole = curve[None], np.array([np.nanmean(baseline)])
        drawn = self.means(scores), self.means(baseline)
        return Emergence(
            onset=self._step(whole, drawn, ONSET), settled=self._step(whole, drawn, SETTLED)
        )

    def _step(
        self,
        whole: tuple[np.ndarray, np.ndarray],
        drawn: tuple[np.ndarray, np.ndarray],
        share: float,
    ) -> Step:
        low, high = np.percentile(stays_from(*drawn, share), self.tails, method="nearest")
        return Step(step=int(stays_from(*whole, share)[0]), low=int(low), high=int(high))


def stays_from(curves: np.ndarray, baseline: np.ndarray, share: float) -> np.ndarray:
    """First step (from 1) from which each curve's gain stays at ``share`` or more.

    Args:
        curves: (curve, step) scores, NaN where undefined (which counts as below).
        baseline: (curve,).

    Returns:
        (curve,) int; the last step where a curve's own end does not clear its baseline.
    """
    full = curves[:, -1:] - baseline[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        reached = (curves - baseline[:, None]) / full >= share
    reached[:, -1] = True
    stays = np.logical_and.accumulate(reached[:, ::-1], axis=1)[:, ::-1]
    return stays.argmax(1) + 1
