"""Ridge probes with a position term, refitted to a part of a run's training samples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ldmprobe_core.probing.detection import best_cut
from ldmprobe_core.probing.fitters.ridge import RidgePath, fit_ridge
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe, finite_samples
from ldmprobe_core.probing.position import token_positions
from ldmprobe_core.probing.ranks import flatten_maps
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.properties import property_of


@dataclass
class TestScorer:
    """Scorer of token-level predictions of one property for the test samples.

    Attributes:
        labels: label maps and splits of the run.
        prop: name of the property.
        test: indices of the test samples, (test sample,).
    """

    labels: LabelSet
    prop: str
    test: np.ndarray
    metrics: tuple[str, ...] = field(init=False)
    __test__ = False  # This attribute tells pytest that the class is not a test.

    def __post_init__(self) -> None:
        record = property_of(self.prop)
        # `LabelSet.scorer` scores all held-out samples.  In this copy, the test samples are the
        # only held-out ones, so validation samples are not scored.
        self._labels = replace(self.labels, heldout=self.test)
        partial = () if record.partial_metric is None else (record.partial_metric,)
        self.metrics = (record.metrics[0], *partial)
        self._rows = [record.metrics.index(name) for name in self.metrics]

    def scores(
        self, tokens: np.ndarray, cut: float | None = None, headline_only: bool = False
    ) -> np.ndarray:
        """Score predictions in the property's main metric and, if it has one, its partial metric.

        Args:
            tokens: predictions, (test sample, y, x); a sample with NaN gets NaN.
            cut: value above which the prediction of a mask counts as foreground.
            headline_only: whether to leave the partial metric out.

        Returns:
            (metric, test sample) float64.
        """
        usable = np.isfinite(tokens).all((1, 2))
        grid = (tokens.shape[1], tokens.shape[2])
        rows, names = self._rows, self.metrics
        if headline_only:
            rows, names = rows[:1], names[:1]
        scorer = self._labels.scorer(self.prop, grid)
        return np.where(usable, scorer.scores(np.nan_to_num(tokens), cut, names)[rows], np.nan)


@dataclass
class RefitData:
    """Activations at one layer and step, and labels of one property, for refitting probes.

    Attributes:
        activations: activations of all samples, (sample, y, x, channel) as stored.
        labels: label maps and splits of the same samples.
        prop: name of the property.
        penalties: candidate relative penalties.
    """

    activations: np.ndarray
    labels: LabelSet
    prop: str
    penalties: tuple[float, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tokens down and across."""
        return self.activations.shape[1], self.activations.shape[2]

    @cached_property
    def finite(self) -> np.ndarray:
        """Flag that is True if all activations of a sample are finite, (sample,) bool."""
        return finite_samples(self.activations)

    @property
    def train(self) -> np.ndarray:
        """Indices of the training samples with finite activations, (n,)."""
        return self.labels.train[self.finite[self.labels.train]]

    @property
    def validation(self) -> np.ndarray:
        """Indices of the validation samples with finite activations, (n,)."""
        return self.labels.validation[self.finite[self.labels.validation]]

    def tokens(self, members: np.ndarray) -> np.ndarray:
        """Token labels of the given samples, (n, y, x); NaN for a token without measured pixels."""
        return self.labels.tokens(self.prop, self.grid)[members]

    def weights(self, members: np.ndarray) -> np.ndarray | None:
        """Number of measured pixels of each token, (n, y, x); None if every pixel was measured."""
        counts = self.labels.token_weights(self.prop, self.grid)
        return None if counts is None else counts[members]

    def sums(self, members: np.ndarray) -> SufficientStatistics:
        """Sufficient statistics of the tokens of the given samples, with one label column.

        Sums of disjoint sets of samples can be added.
        """
        positions = token_positions(self.grid)
        x = self.activations[members].reshape(-1, self.activations.shape[-1])
        y, weight = self.tokens(members).reshape(-1, 1), self.weights(members)
        at_token = np.resize(positions, len(x))
        if weight is not None:
            weight = weight.ravel()
            known = weight > 0
            x, y, weight, at_token = x[known], y[known], weight[known], at_token[known]
        return SufficientStatistics.from_tokens(x, y, weight, at_token, positions.max() + 1)

    def fit(
        self,
        sums: SufficientStatistics,
        validation: SufficientStatistics,
        penalties: tuple[float, ...] | None = None,
    ) -> LinearProbe:
        """Fit a ridge probe with a position term, at the penalty with the least validation error.

        Args:
            sums: statistics of the samples to fit to; their mean label at a position is the
                position term.
            validation: statistics of the samples on which the penalty is chosen.
            penalties: candidate relative penalties; None takes those of the study.
        """
        means = _label_means(sums)
        path = RidgePath.from_statistics(sums.less_positions(means))
        [probe] = fit_ridge(path, validation.less_positions(means), penalties or self.penalties)
        return replace(probe, position=means[:, 0][token_positions(self.grid)])

    def cut(self, probe: LinearProbe, members: np.ndarray) -> float | None:
        """Choose the foreground threshold of a mask's probe; None for other properties."""
        if not property_of(self.prop).is_mask:
            return None
        weights = self.weights(members)
        return best_cut(
            flatten_maps(probe.predict(self.activations[members])),
            flatten_maps(self.tokens(members)),
            None if weights is None else flatten_maps(weights),
        )

    def predict(self, probe: LinearProbe, members: np.ndarray, cut: float | None) -> np.ndarray:
        """Predict the tokens of the given samples, minus the foreground threshold `cut`, (n, y, x).

        The prediction of a mask is foreground where the result is positive.  A sample with
        non-finite activations gets NaN.
        """
        finite = self.finite[members]
        predicted = np.full((len(members), *self.grid), np.nan)
        predicted[finite] = probe.predict(self.activations[members[finite]]) - (cut or 0.0)
        return predicted


def ordered_by_prompt(
    members: np.ndarray, prompts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Order samples at random, with all samples of a prompt next to each other.

    Args:
        members: indices of the samples, (n,).
        prompts: prompt or other group of each sample, (n,).
        rng: generator of the random order.
    """
    _, group = np.unique(prompts, return_inverse=True)
    rank = rng.permutation(group.max(initial=-1) + 1)
    return np.asarray(members[np.argsort(rank[group], kind="stable")])


def _label_means(sums: SufficientStatistics) -> np.ndarray:
    """Average the labels at each token position; a position without tokens gets the overall mean.

    Returns:
        mean labels, (position, label).
    """
    if sums.by_position is None:
        raise ValueError(
            "by_position: the sums were not computed (None). Fix: pass positions to from_tokens"
        )
    count = sums.by_position[:, sums.channels, None]
    total = sums.by_position[:, sums.channels + 1 :]
    overall = sums.y / max(sums.n, 1)
    return np.where(count > 0, total / np.where(count > 0, count, 1), overall)
