"""Bootstrap intervals of scores over held-out samples, resampled by prompt."""

from __future__ import annotations

import warnings

import numpy as np
from pydantic import BaseModel

from ldmprobe_core.probing.emergence import ONSET, SETTLED, Emergence, Lead, Leads, Step, stays_from


class Interval(BaseModel):
    """Mean over samples with its bootstrap interval.

    Attributes:
        mean: None if the score of every sample is undefined.
        low, high: ends of the interval; None too if the samples form fewer than two groups.
    """

    mean: float | None
    low: float | None
    high: float | None


class Bootstrap:
    """Cluster bootstrap over groups of samples, such as the images of one prompt.

    Images of one prompt are not independent, so each draw adds all samples of a group.  The same
    resamples serve every interval, so that differences between curves are paired.

    Args:
        groups: group of each sample, such as its prompt, (sample,).
        resamples: number of resamples of the groups, drawn with replacement.
        level: confidence level of the intervals, such as 0.95.
        seed: seed of the random draws.
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
        """Average the defined scores in every resample.

        Args:
            values: scores (..., sample); NaN for a sample whose score is undefined.

        Returns:
            (resample, ...) float64; NaN where a resample contains no defined sample.
        """
        defined = np.isfinite(values)
        total = self.counts @ np.moveaxis(np.where(defined, values, 0), -1, 0).reshape(
            values.shape[-1], -1
        )
        n_defined = self.counts @ np.moveaxis(defined, -1, 0).reshape(values.shape[-1], -1)
        with np.errstate(invalid="ignore"):
            return (total / n_defined).reshape(len(self.counts), *values.shape[:-1])

    def interval(self, values: np.ndarray) -> Interval:
        """Mean and percentile interval of scores (sample,); NaN scores are skipped."""
        if not np.isfinite(values).any():
            return Interval(mean=None, low=None, high=None)
        # The spread between groups cannot be estimated from a single group.
        if self.groups < 2:
            return Interval(mean=float(np.nanmean(values)), low=None, high=None)
        low, high = np.nanpercentile(self.means(values), self.tails)
        return Interval(mean=float(np.nanmean(values)), low=float(low), high=float(high))

    def emergence(self, scores: np.ndarray, baseline: np.ndarray) -> Emergence:
        """Find the onset and settled steps of a curve, with their percentile intervals.

        Both steps are None unless the last step's score clearly exceeds the baseline: the interval
        of their difference must lie above zero.

        Args:
            scores: scores of the curve, (step, sample).
            baseline: scores of the position baseline in the same metric, (sample,).
        """
        lead = self.interval(scores[-1] - baseline)
        if lead.low is None or lead.low <= 0:
            undefined = Step(step=None, low=None, high=None)
            return Emergence(onset=undefined, settled=undefined)
        return Emergence(
            onset=self._step(scores, baseline, ONSET), settled=self._step(scores, baseline, SETTLED)
        )

    def lead(self, first: np.ndarray, other: np.ndarray, baseline: np.ndarray) -> Leads:
        """Count the steps by which the first curve precedes the other, with paired intervals.

        Args:
            first, other: scores of the two curves, (step, sample).
            baseline: scores of the position baseline, which both curves share, (sample,).
        """
        onsets = [self.emergence(curve, baseline).onset.step for curve in (first, other)]
        if None in onsets:
            undefined = Lead(steps=None, low=None, high=None)
            return Leads(onset=undefined, settled=undefined)
        return Leads(**{
            name: self._lead(first, other, baseline, share)
            for name, share in (("onset", ONSET), ("settled", SETTLED))
        })  # fmt: skip

    def _lead(
        self, first: np.ndarray, other: np.ndarray, baseline: np.ndarray, share: float
    ) -> Lead:
        first_step, first_resampled = self.steps(first, baseline, share)
        other_step, other_resampled = self.steps(other, baseline, share)
        low, high = np.percentile(other_resampled - first_resampled, self.tails, method="nearest")
        return Lead(steps=other_step - first_step, low=int(low), high=int(high))

    def _step(self, scores: np.ndarray, baseline: np.ndarray, share: float) -> Step:
        step, resampled = self.steps(scores, baseline, share)
        low, high = np.percentile(resampled, self.tails, method="nearest")
        return Step(step=step, low=int(low), high=int(high))

    def steps(
        self, scores: np.ndarray, baseline: np.ndarray, share: float
    ) -> tuple[int, np.ndarray]:
        """Find the step from which a curve keeps a share of its final gain over the baseline.

        Args:
            scores: scores of the curve, (step, sample).
            baseline: scores of the position baseline, (sample,).
            share: fraction of the last step's gain, 0..1.

        Returns:
            the step (from 1) for all samples together, and the step in each resample, (resample,).
        """
        gain, full = scores - baseline, scores[-1] - baseline
        common = np.isfinite(gain) & np.isfinite(full)
        pair = np.stack([np.where(common, gain, np.nan), np.where(common, full, np.nan)])
        with warnings.catch_warnings():
            # NaN is the intended mean of a step at which no sample has a defined score.
            warnings.simplefilter("ignore", RuntimeWarning)
            means = np.nanmean(pair, axis=-1)
        resampled = self.means(pair)
        return (
            int(stays_from(means[:1], means[1:], share)[0]),
            stays_from(resampled[:, 0], resampled[:, 1], share),
        )
