"""First steps at which a curve of scores reaches 50 % and 90 % of its gain, with intervals.

A curve emerges at the first step from which it stays at or above a *bar*.  There are two bars, and
two shares of the gain over the position baseline: the *onset* is at 50 % and the *settled* step at
90 %.

* The relative bar is a share of the curve's own final gain: b + share (s(T) - b), where s is the
  score, b the score of the position baseline and T the last step.
* The absolute bar is a share of the final gain of the probes, and is the same height for the curves
  of probes and of labelers, so that steps on it can be compared.

Bars are linear in the scores.  The distance of a curve to its bar is therefore the mean over
samples of one number per sample and step, the *margin*.

The interval of a step follows from confidence bands about the mean margin.  Its upper end is the
first step from which the lower band stays at or above zero.  Only the last step below the bar must
be distinguished from zero for that end to be too early, so a pointwise band keeps its error rate.
Its lower end is the first step from which the upper band stays at or above zero.  Any later step
may be mistaken for one below the bar, so this band holds for all steps at once (the maximum of
studentised deviations over the steps).  Percentiles of resampled steps would cover the true step
too rarely if a curve runs along its bar.  Bands of few clusters are widened by the factor that
intervals of scores have.

Another division of the images into training and validation would have given another curve.  Where
curves of *re-splits* are known, each resample of the test samples is shifted by the mean deviation
of one of them, so the bands hold both kinds of variation.  The deviations of single samples from
that mean are left out, because the spread of the margins over the samples contains their like
already.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from ldmprobe_core.probing.inference.bootstrap import (
    Bootstrap,
    expanded_spread,
    resampled_means,
)

SHARES = {"onset": 0.5, "settled": 0.9}
"""Shares of the final gain over the position baseline that define the two steps."""

WIDEST_SHARE = 1 / 3
"""Largest share of the steps that an interval may span for its step to be determined."""


class Crossing(BaseModel):
    """Step (from 1) from which a curve stays at or above a given score, with its interval.

    Attributes:
        step: None if the curve ends below its bar, or if it does not exceed the position baseline
            beyond doubt at the last step.
        low, high: ends of the interval; None stands for "after the last step" or, if `step` is
            None too, for "undefined".
        determined: whether the interval spans at most a third of the steps.
        distribution: share of the resamples whose curve crosses the bar at step 1, 2, ... or
            before; empty if the step is undefined.
    """

    step: int | None = None
    low: int | None = None
    high: int | None = None
    determined: bool = False
    distribution: list[float] = []

    def at_steps(self, numbers: np.ndarray, steps: int) -> Crossing:
        """Renumber a crossing that was found on some steps only, so that it refers to all steps.

        The step is the first known one from which the curve stays at or above its bar.  The curve
        may cross at any step after the known step before, so the lower end is the first of these.

        Args:
            numbers: number of each known step (from 1), ascending.
            steps: number of all steps.
        """
        if not self.distribution or len(numbers) == steps:
            return self
        step, high = (
            None if end is None else int(numbers[end - 1]) for end in (self.step, self.high)
        )
        low = None
        if self.low is not None:
            low = 1 if self.low == 1 else int(numbers[self.low - 2]) + 1
        width = steps if low is None or high is None else high - low
        known = np.searchsorted(numbers, np.arange(1, steps + 1), side="right")
        return Crossing(
            step=step,
            low=low,
            high=high,
            determined=step is not None and width <= WIDEST_SHARE * steps,
            distribution=[float(share) for share in np.append(0.0, self.distribution)[known]],
        )


class Lead(BaseModel):
    """Number of steps by which one curve precedes another, with a conservative interval.

    The interval joins the opposite ends of both steps' intervals.  It therefore covers the true
    lead at least as often as both intervals cover their steps.

    Attributes:
        steps: negative if the first curve follows; None if either step is undefined.
        low, high: ends of the interval; None if they are not bounded within the steps.
        determined: whether the interval spans at most a third of the steps.
    """

    steps: int | None = None
    low: int | None = None
    high: int | None = None
    determined: bool = False


def relative_margins(scores: np.ndarray, baseline: np.ndarray, share: float) -> np.ndarray:
    """Compute how far a curve is above a share of its own final gain, at each step and sample.

    The bar is a share of the gain over the position baseline that the curve has at the last step.

    Args:
        scores: scores of the curve, (step, sample).
        baseline: scores of the position baseline in the same metric, (sample,).
        share: share of the gain, 0..1.
    """
    gain = scores - baseline
    return gain - share * gain[-1]


def absolute_margins(
    scores: np.ndarray, reference: np.ndarray, baseline: np.ndarray, share: float
) -> np.ndarray:
    """Compute how far a curve is above a share of another curve's final gain, (step, sample).

    Args:
        scores: scores of the curve, (step, sample).
        reference: last scores of the curve that sets the height, (sample,).
        baseline: scores of the position baseline in the same metric, (sample,).
        share: share of the gain, 0..1.
    """
    return scores - (baseline + share * (reference - baseline))


def first_step_above(margins: np.ndarray) -> np.ndarray:
    """Find the first step (from 1) from which each row of margins (..., step) stays at or above 0.

    Returns:
        (...) int; one more than the number of steps if a row ends below 0 or is undefined there.
    """
    above = np.asarray(margins) >= 0
    stays = np.logical_and.accumulate(above[..., ::-1], axis=-1)[..., ::-1]
    return np.where(above[..., -1], stays.argmax(-1), above.shape[-1]) + 1


def crossing(
    margins: np.ndarray, bootstrap: Bootstrap, deviations: np.ndarray | None = None
) -> Crossing:
    """Find the step from which the mean margin stays at or above zero, with its interval.

    If samples are resampled both by prompt and by category, the wider interval is given, with its
    distribution.

    Args:
        margins: margins of the curve, (step, sample).  A sample that is NaN at any step is left
            out.
        bootstrap: bootstrap over the same samples.
        deviations: deviations of the margins of re-splits from their mean, finite, (re-split, step,
            sample), whose means over the samples are used; None if there are no re-splits.

    Returns:
        the step; undefined if there are too few clusters, or no usable sample.
    """
    usable = np.isfinite(margins).all(0)
    if len(np.unique(bootstrap.clusterings[0][usable])) < bootstrap.fewest:
        return Crossing()
    if deviations is None:
        deviations = np.zeros((1, *margins.shape))
    values, shifts = margins[:, usable], deviations[..., usable].mean(-1)
    clusters = [len(np.unique(member[usable])) for member in bootstrap.clusterings]
    found = [
        _crossing(values, shifts, counts[:, usable], bootstrap.level, n)
        for counts, n in zip(bootstrap.counts, clusters, strict=True)
        if n >= bootstrap.fewest
    ]
    beyond = len(margins) + 1
    return max(found, key=lambda c: (c.high or beyond) - (c.low or beyond))


def lead_over(first: Crossing, other: Crossing) -> Lead:
    """Count by how many steps one curve reaches a given score earlier than another curve.

    The count is negative if ``first`` reaches it later.  Both crossings must be of the same bar.
    """
    if first.step is None or other.step is None:
        return Lead()
    known = None not in (first.low, first.high, other.low, other.high)
    low = high = None
    if known:
        low, high = other.low - first.high, other.high - first.low  # type: ignore[operator]
    steps = len(first.distribution)
    determined = low is not None and high is not None and high - low <= WIDEST_SHARE * steps
    return Lead(steps=other.step - first.step, low=low, high=high, determined=determined)


def _crossing(
    values: np.ndarray, shifts: np.ndarray, counts: np.ndarray, level: float, clusters: int
) -> Crossing:
    """Find the step from which mean margins stay at or above zero; get an interval by resampling.

    The counts are those of one way of clustering, (resample, sample), into a number of clusters.
    The resamples are shared out to the re-splits in turn, and get their shifts, (re-split, step).
    """
    mean = values.mean(1)
    drawn = resampled_means(values, counts)
    drawn = drawn + shifts[np.arange(len(drawn)) % len(shifts)]
    drawn = drawn[np.isfinite(drawn).all(1)]
    centred = drawn - drawn.mean(0)
    spread = centred.std(0)
    studentised = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    tail, widened = (1 - level) / 2, spread * expanded_spread(level, clusters)
    lower = mean + np.quantile(studentised, tail, axis=0) * widened
    upper = mean + np.quantile(studentised.max(1), 1 - tail) * widened
    steps = len(mean)
    step, low, high = (
        int(value) if value <= steps else None
        for value in first_step_above(np.stack([mean, upper, lower]))
    )
    crossed = first_step_above(drawn)
    width = steps if low is None or high is None else high - low
    return Crossing(
        step=step,
        low=low,
        high=high,
        determined=step is not None and width <= WIDEST_SHARE * steps,
        distribution=[float((crossed <= k).mean()) for k in range(1, steps + 1)],
    )
