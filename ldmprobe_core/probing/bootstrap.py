"""Cluster-bootstrap intervals over held-out samples."""

from __future__ import annotations

import warnings

import numpy as np
from pydantic import BaseModel

from ldmprobe_core.probing.emergence import ONSET, SETTLED, Emergence, Lead, Leads, Step, stays_from


class Interval(BaseModel):
    """A mean over samples and its bootstrap interval; None where every sample is undefined.

    Of fewer than two groups there is a mean and no interval.
    """

    mean: float | None
    low: float | None
    high: float | None


class Bootstrap:
    """Resamples of the held-out prompts, drawn once and shared, so that comparisons are paired.

    Images of one prompt are not independent: they are drawn together (the cluster bootstrap).

    Args:
        groups: (sample,), what each sample belongs to; samples of a group are drawn together.
        resamples: number of resamples, drawn with replacement.
        level: of the intervals, such as 0.95.
        seed: of the drawing.
    """

    def __init__(self, groups: np.ndarray, resamples: int, level: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        distinct, member = np.unique(groups, return_inverse=True)
        n = len(distinct)
        drawn = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)]
        self.groups = n
        self.counts = np.stack(drawn).astype(np.float64)[:, member]
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
        if self.groups < 2:  # one prompt says nothing of how prompts differ
            return Interval(mean=float(np.nanmean(values)), low=None, high=None)
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
        return Emergence(
            onset=self._step(scores, baseline, ONSET), settled=self._step(scores, baseline, SETTLED)
        )

    def lead(self, first: np.ndarray, other: np.ndarray, baseline: np.ndarray) -> Leads:
        """How many steps the first curve is ahead of the other, in the same resamples.

        Args:
            first, other: (step, sample).
            baseline: (sample,), of both.
        """
        ends = [self.emergence(curve, baseline).onset.step for curve in (first, other)]
        if None in ends:
            nowhere = Lead(steps=None, low=None, high=None)
            return Leads(onset=nowhere, settled=nowhere)
        return Leads(**{
            name: self._lead(first, other, baseline, share)
            for name, share in (("onset", ONSET), ("settled", SETTLED))
        })  # fmt: skip

    def _lead(
        self, first: np.ndarray, other: np.ndarray, baseline: np.ndarray, share: float
    ) -> Lead:
        a, drawn_a = self.steps(first, baseline, share)
        b, drawn_b = self.steps(other, baseline, share)
        low, high = np.percentile(drawn_b - drawn_a, self.tails, method="nearest")
        return Lead(steps=b - a, low=int(low), high=int(high))

    def _step(self, scores: np.ndarray, baseline: np.ndarray, share: float) -> Step:
        whole, drawn = self.steps(scores, baseline, share)
        low, high = np.percentile(drawn, self.tails, method="nearest")
        return Step(step=whole, low=int(low), high=int(high))

    def steps(
        self, scores: np.ndarray, baseline: np.ndarray, share: float
    ) -> tuple[int, np.ndarray]:
        """The step from which the gain stays at ``share``: of the samples, and of each resample.

        Args:
            scores: (step, sample).
            baseline: (sample,).

        Returns:
            the step, from 1, and (resample,) the same of every resample.
        """
        gain, full = scores - baseline, scores[-1] - baseline
        common = np.isfinite(gain) & np.isfinite(full)
        pair = np.stack([np.where(common, gain, np.nan), np.where(common, full, np.nan)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a step that no sample defines: NaN
            whole = np.nanmean(pair, axis=-1)
        drawn = self.means(pair)
        return (
            int(stays_from(whole[:1], whole[1:], share)[0]),
            stays_from(drawn[:, 0], drawn[:, 1], share),
        )
