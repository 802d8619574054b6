"""Bootstrap intervals of scores over held-out samples, resampled by prompt and by category."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel
from scipy.special import ndtr, ndtri, stdtrit

from ldmprobe_core.study.probe_sections import BootstrapSettings
from ldmprobe_core.study.samples import Sample

MINIMUM_CLUSTERS = 5
"""Smallest number of clusters for which an interval of any level is given.

The spread between clusters cannot be estimated from fewer, and the bootstrap of so few is too
narrow.
"""

MOST_RESAMPLES = 100_000
"""Largest number of resamples that are drawn because clusters are few."""


class Interval(BaseModel):
    """Mean over samples with its bootstrap interval.

    Attributes:
        mean: None if the score of every sample is undefined.
        low, high: ends of the interval; None too if the samples with a defined score form fewer
            than `fewest_clusters` clusters.
    """

    mean: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Format the mean with its interval, as ``0.83 [0.80, 0.86]``; a dash if it is undefined.

        If the interval is undefined, only the mean is given.
        """
        if self.mean is None:
            return "–"
        if self.low is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Bootstrap:
    """Cluster bootstrap that resamples prompts and, if they are known, categories.

    Images of one prompt are not independent, and neither are images of one category, so each draw
    adds all samples of a cluster.  Of the interval over prompts and the interval over categories,
    the wider is given.  The same resamples serve every interval, so differences are paired.

    Args:
        prompts: prompt of each sample, or another group of dependent samples, (sample,).
        resamples: number of resamples of the clusters, drawn with replacement.  For the ends of
            intervals of few clusters more are drawn, so that one is expected beyond each end.
        level: confidence level of the intervals, such as 0.95.
        seed: seed of the random draws.
        categories: category of each sample, (sample,).  None, or fewer distinct categories than
            `fewest_clusters`, resamples by prompt only.

    Attributes:
        clusterings: index of each sample's cluster, (sample,), for every way of clustering.
        counts: number of times that each resample contains a sample, (resample, sample) float64,
            in the same order.
        groups: number of distinct prompts.
        fewest: smallest number of clusters that have an interval.
        few_categories: number of distinct categories that are too few to be resampled; None if they
            are resampled or not known.
    """

    def __init__(
        self,
        prompts: np.ndarray,
        resamples: int,
        level: float,
        seed: int,
        categories: np.ndarray | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.level, self.seed, self.fewest = level, seed, fewest_clusters(level)
        self.clusterings = [np.unique(prompts, return_inverse=True)[1]]
        self.few_categories = None
        if categories is not None:
            names, member = np.unique(categories, return_inverse=True)
            if len(names) >= self.fewest:
                self.clusterings.append(member)
            else:
                self.few_categories = len(names)
        self.counts = [_draw(member, resamples, rng) for member in self.clusterings]
        self.groups = _count(self.clusterings[0])
        enough = [n for n in map(_count, self.clusterings) if n >= self.fewest]
        more = max([0, *(resamples_beyond(level, n) - resamples for n in enough)])
        self._standard_normal = rng.standard_normal(resamples + more)
        self._counts_of_ends = [
            np.concatenate([counts, _draw(member, more, rng)]) if more else counts
            for counts, member in zip(self.counts, self.clusterings, strict=True)
        ]

    @classmethod
    def of_samples(
        cls, samples: Sequence[Sample], settings: BootstrapSettings, seed: int
    ) -> Bootstrap:
        """Build the bootstrap of samples, clustered by prompt and, if some are known, category.

        A sample without a category is in a cluster with the others of its prompt, so that one such
        sample does not leave the likeness of all categories out of the intervals.
        """
        known = any(sample.category is not None for sample in samples)
        # No category begins with a NUL, so that a prompt is not taken for one.
        categories = [
            f"\0{sample.group}" if sample.category is None else sample.category
            for sample in samples
        ]
        return cls(
            np.array([sample.group for sample in samples]),
            settings.resamples,
            settings.level,
            seed,
            np.array(categories) if known else None,
        )

    @property
    def categories(self) -> int | None:
        """Number of distinct categories; None if samples are resampled by prompt only."""
        return _count(self.clusterings[1]) if len(self.clusterings) > 1 else None

    @property
    def accompanied(self) -> np.ndarray:
        """Flags of the samples whose prompt has other samples too, (sample,) bool."""
        member = self.clusterings[0]
        return np.asarray(np.bincount(member)[member] > 1)

    def interval(self, values: np.ndarray, error: float = 0.0) -> Interval:
        """Compute the mean of scores (sample,) and its percentile interval.

        Args:
            values: scores, (sample,); NaN and infinite scores are skipped.
            error: standard error of the mean from other sources than the choice of samples; a
                normal deviate of this size is added to the mean of every resample.
        """
        if not np.isfinite(values).any():
            return Interval(mean=None, low=None, high=None)
        mean = float(np.nanmean(np.where(np.isfinite(values), values, np.nan)))
        if not self._has_interval(values):
            return Interval(mean=mean, low=None, high=None)
        low, high = max(self._ends(values, error), key=_width)
        return Interval(mean=mean, low=low, high=high)

    def interval_of(
        self, values: np.ndarray, function: Callable[[np.ndarray], np.ndarray]
    ) -> Interval:
        """Compute the percentile interval of a function of several means, such as a ratio.

        Args:
            values: (..., sample); NaN values are skipped.
            function: function from means (draw, ...) to its values (draw,).
        """
        return self.interval_of_statistic(
            lambda counts: function(resampled_means(values, counts)),
            np.isfinite(values).reshape(-1, values.shape[-1]).all(0),
        )

    def interval_of_statistic(
        self, statistic: Callable[[np.ndarray], np.ndarray], defined: np.ndarray
    ) -> Interval:
        """Compute the percentile interval of a statistic, such as a rank correlation.

        Args:
            statistic: function from the number of times that each resample contains a sample,
                (draw, sample), to the statistic's values (draw,).
            defined: whether the statistic uses a sample, (sample,) bool.

        Returns:
            the statistic of all samples as ``mean``, with its interval.
        """
        mean = float(statistic(np.ones((1, len(defined))))[0])
        if not np.isfinite(mean):
            return Interval(mean=None, low=None, high=None)
        if not self._has_interval(np.where(defined, 0.0, np.nan)):
            return Interval(mean=mean, low=None, high=None)
        low, high = max(self._ends_of(statistic, defined), key=_width)
        return Interval(mean=mean, low=low, high=high)

    def p_value(self, differences: np.ndarray, error: float = 0.0) -> float | None:
        """Compute the one-sided p value of the hypothesis that the mean difference is at most zero.

        Args:
            differences: (sample,); NaN differences are skipped.
            error: as in `interval`.

        Returns:
            the share of resamples whose mean is at most zero, counting one more such resample; the
            larger of the shares by prompt and by category.  None if there are fewer prompts than
            `fewest_clusters` or no finite difference.
        """
        if not self._has_interval(differences):
            return None
        shares = []
        for counts in self.counts:
            means = resampled_means(differences, counts)
            means = means + error * self._standard_normal[: len(means)]
            means = means[np.isfinite(means)]
            shares.append((1 + (means <= 0).sum()) / (1 + len(means)))
        return float(max(shares))

    def wider(self, values: np.ndarray) -> Literal["prompts", "categories"] | None:
        """Find whether resampling prompts or categories gives the wider interval of the mean score.

        The result is None if there is no interval.
        """
        if not self._has_interval(values):
            return None
        by_prompt, *by_category = (_width(pair) for pair in self._ends(values))
        return "categories" if by_category and by_category[0] > by_prompt else "prompts"

    def _has_interval(self, values: np.ndarray) -> bool:
        """Return whether enough prompts have a defined score for an interval of the mean."""
        defined = np.isfinite(values)
        return len(np.unique(self.clusterings[0][defined])) >= self.fewest

    def _ends(self, values: np.ndarray, error: float = 0.0) -> list[tuple[float, float]]:
        """Compute the ends of a mean score's percentile interval, for each clustering."""
        return self._ends_of(
            lambda counts: resampled_means(values, counts) + error * self._standard_normal,
            np.isfinite(values),
        )

    def _ends_of(
        self, statistic: Callable[[np.ndarray], np.ndarray], defined: np.ndarray
    ) -> list[tuple[float, float]]:
        """Compute the ends of a statistic's percentile interval, for each clustering.

        Args:
            statistic: function from the counts of the resamples (resample, sample) to the
                statistic's values (resample,).
            defined: whether the statistic uses a sample, (sample,) bool.
        """
        clusters = [len(np.unique(member[defined])) for member in self.clusterings]
        ends = [
            np.nanquantile(statistic(counts), expanded_tails(self.level, n))
            for counts, n in zip(self._counts_of_ends, clusters, strict=True)
            if n >= self.fewest
        ]
        return [(float(low), float(high)) for low, high in ends]


def fewest_clusters(level: float) -> int:
    """Compute the smallest number of clusters for which an interval of a level is given.

    Means of resampled clusters lie between the smallest and the largest cluster's value.  The
    centre of a symmetric distribution lies beyond all of n values with probability 2^(1 - n), and
    then no interval of resampled means contains it.  This probability may be up to a quarter larger
    than 1 - level, so that 95% needs 5 clusters (1/16 = 1.25 x 0.05), and 99% needs 8.

    Args:
        level: confidence level, such as 0.95.
    """
    clusters = max(MINIMUM_CLUSTERS, math.ceil(round(1 + math.log2(0.8 / (1 - level)), 6)))
    # Few clusters at a high level would need too many resamples.  The highest level that a study
    # may have needs as many with any number of clusters, so that the search has an end.
    while resamples_beyond(level, clusters) > MOST_RESAMPLES and clusters < 1000:
        clusters += 1
    return clusters


def resamples_beyond(level: float, clusters: int) -> int:
    """Compute the number of resamples of which one is expected beyond each end of an interval.

    It is rounded to hundreds, so that the default, 1000, suffices for 95% and any number of
    clusters.
    """
    return round(1 / expanded_tails(level, clusters)[0] / 100) * 100


def expanded_tails(level: float, clusters: int) -> tuple[float, float]:
    """Compute the quantile levels of an interval's two ends, corrected for few clusters.

    Resampled means of n clusters vary too little, by a factor sqrt((n - 1) / n), and normal
    quantiles do not allow for the estimation of the spread.  The expanded percentile interval makes
    up for both (Hesterberg 2015, The American Statistician 69).

    Args:
        level: confidence level, such as 0.95.
        clusters: number of clusters, at least 2.

    Returns:
        lower and upper quantile, 0..1; for many clusters (1 - level) / 2 and (1 + level) / 2.
    """
    tail = float(ndtr(_expanded_deviate(level, clusters)))
    return tail, 1 - tail


def expanded_spread(level: float, clusters: int) -> float:
    """Compute the factor of a normal interval's width that corrects it for few clusters.

    It is the correction of `expanded_tails` for intervals that are multiples of a standard
    deviation of resampled means.

    Args:
        level: confidence level, such as 0.95.
        clusters: number of clusters, at least 2.

    Returns:
        at least 1; 1 for many clusters.
    """
    return float(_expanded_deviate(level, clusters) / ndtri((1 - level) / 2))


def _expanded_deviate(level: float, clusters: int) -> float:
    """Compute an interval's lower end in standard deviations of the resampled means."""
    ratio = np.sqrt(clusters / (clusters - 1))
    return float(ratio * stdtrit(clusters - 1, (1 - level) / 2))


def resampled_means(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average the defined scores over the samples of each resample.

    Args:
        values: scores (..., sample); NaN for a sample whose score is undefined.
        counts: number of times that each resample contains a sample, (resample, sample).

    Returns:
        (resample, ...) float64; NaN where a resample contains no defined sample.
    """
    defined = np.isfinite(values)
    rows = np.moveaxis(np.where(defined, values, 0), -1, 0).reshape(values.shape[-1], -1)
    n_defined = counts @ np.moveaxis(defined, -1, 0).reshape(values.shape[-1], -1)
    with np.errstate(invalid="ignore"):
        return (counts @ rows / n_defined).reshape(len(counts), *values.shape[:-1])


def _width(ends: tuple[float, float]) -> float:
    """Return the width of an interval."""
    return ends[1] - ends[0]


def _count(member: np.ndarray) -> int:
    """Return the number of clusters; `member` is the cluster index of each sample."""
    return int(member.max(initial=-1)) + 1


def _draw(member: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw clusters with replacement, and count how often each sample is drawn."""
    n = _count(member)
    drawn = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n * resamples).reshape(resamples, n)
    return counts.astype(np.float64)[:, member]
