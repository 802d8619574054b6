"""Probes of properties that are one number per image, such as the size of the object.

A number has no place in the image, so its probe reads the mean activation over all tokens: ridge
regression from the channels of a layer at a step to the number.  The score is Spearman's rank
correlation over the test images.  It is compared with ridge regressions from the mean latents, from
the mean colour of the predicted clean image and from the prompt's embedding, and with the best of
all cells for permuted numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.analysis.controls.coverage import partial_inputs
from ldmprobe_core.analysis.controls.records import NumberRecord, NumberScore
from ldmprobe_core.pipeline.probe import read_cell
from ldmprobe_core.probing.fitters.ridge import RidgePath, fit_ridge
from ldmprobe_core.probing.inference.bootstrap import MINIMUM_CLUSTERS, Bootstrap, Interval
from ldmprobe_core.probing.inference.permutation import permute_groups, share_as_large
from ldmprobe_core.probing.inference.selection import enough_defined
from ldmprobe_core.probing.linear import predictions
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.storage.run import Run


def rank_correlation(counts: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute Spearman's rank correlation of two variables in each bootstrap resample.

    Args:
        counts: number of times that each resample contains a sample, (draw, sample).
        a, b: values of the samples, (sample,); samples with a NaN are left out.

    Returns:
        (draw,) float64; NaN for a resample in which one of the variables is constant.
    """
    defined = np.isfinite(a) & np.isfinite(b)
    counts = counts[:, defined]
    ranks = [_ranks(counts, values[defined]) for values in (a, b)]
    n = counts.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (rank - (counts * rank).sum(1, keepdims=True) / n for rank in ranks)
        product = (counts * x * y).sum(1)
        return np.asarray(product / np.sqrt((counts * x * x).sum(1) * (counts * y * y).sum(1)))


def _ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank the samples within each resample, (draw, sample); equal values share their mean rank."""
    order = np.argsort(values, kind="stable")
    _, first, group = np.unique(values[order], return_index=True, return_inverse=True)
    of_group = np.add.reduceat(counts[:, order], first, axis=1)
    group = group[np.argsort(order)]
    return np.asarray((of_group.cumsum(1) - of_group / 2 + 0.5)[:, group])


def number_records(run: Run, bootstrap: Bootstrap) -> dict[str, NumberRecord]:
    """Fit and score probes of all properties that are one number per image, by property name.

    Args:
        run: finished run that stores the activations of all samples.
        bootstrap: bootstrap over the test samples.
    """
    names = run.study.labels.numbers
    if not names:
        return {}
    samples = run.samples[: run.n_stored]
    split, prompts = (np.array([getattr(s, key) for s in samples]) for key in ("split", "group"))
    values = np.stack([run.read("labels", name).astype(np.float64) for name in names], -1)
    rng = np.random.default_rng(run.study.prompts.seed)
    controls, n = run.study.controls, len(values)
    draws = controls.permutations if controls.enabled("shuffled_labels") else 0
    orders = np.stack([np.arange(n), *(permute_groups(prompts, rng) for _ in range(draws))])
    data = _Numbers(run, split, prompts, values[orders])
    cells = {name: list(data.predictions(name)) for name in run.probe_inputs}
    return {
        name: _NumberResult(data, cells, index, bootstrap).record()
        for index, name in enumerate(names)
    }


@dataclass(frozen=True)
class _Numbers:
    """True and randomly permuted numbers of the stored samples, as targets of probes.

    Attributes:
        split, prompts: split and prompt of each sample, (sample,).
        targets: numbers by draw, (draw, sample, number); the first draw is not permuted.
    """

    run: Run
    split: np.ndarray
    prompts: np.ndarray
    targets: np.ndarray

    def predictions(self, layer: str) -> list[np.ndarray]:
        """Predict the true and permuted numbers from one probe input at every step.

        Returns:
            (draw, sample, number) for each step.
        """
        return [
            self.from_features(*_mean_tokens(self.run, step, layer))
            for step in range(1, self.run.open("progress").sizes["step"] + 1)
        ]

    def from_features(self, index: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Fit ridge regressions to training samples, and predict the numbers of all samples.

        Args:
            index: samples that have features, (n,).
            features: (n, channel); samples with a value that is not finite are left out.

        Returns:
            (draw, sample, number) float64; NaN for samples without features.
        """
        finite = np.isfinite(features).all(1)
        index, features = index[finite], features[finite]
        draws, n, numbers = self.targets.shape
        predicted = np.full((draws, n, numbers), np.nan)
        split = self.split[index]
        if not {"train", "validation"} <= set(split):
            return predicted
        columns = np.moveaxis(self.targets[:, index], 0, 1).reshape(len(index), -1)
        fitted, chosen = (
            SufficientStatistics.from_tokens(features[split == part], columns[split == part])
            for part in ("train", "validation")
        )
        path = RidgePath.from_statistics(fitted)
        probes = fit_ridge(path, chosen, self.run.study.probes.penalties)
        values = predictions(features[:, None, None], probes)[:, 0, 0]
        predicted[:, index] = np.moveaxis(values.reshape(-1, draws, numbers), 1, 0)
        return predicted


def _mean_tokens(run: Run, step: int, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Average the activations of one probe input over the tokens of each sample.

    Returns:
        indices of the samples that have activations, (n,), and means (n, channel) float64.
    """
    index, activations = read_cell(run, "trained", step, layer)
    return index, activations.mean((1, 2), dtype=np.float64)


class _NumberResult:
    """Scores of one property that is a number per image, from predictions at all layers and steps.

    Args:
        data: numbers of the run.
        cells: predictions (draw, sample, number) of every layer and input control at every step.
        number: index of the number.
        bootstrap: bootstrap over the test samples.
    """

    def __init__(
        self,
        data: _Numbers,
        cells: dict[str, list[np.ndarray]],
        number: int,
        bootstrap: Bootstrap,
    ) -> None:
        self.data, self.bootstrap, self.number = data, bootstrap, number
        self.test = data.split == "test"
        self.truth = data.targets[..., number]
        self.cells = {
            name: np.stack([of_step[..., number] for of_step in steps])
            for name, steps in cells.items()
        }

    def record(self) -> NumberRecord:
        """Build the property's record: test scores of its best layer and step, and of controls.

        The best layer and step are chosen on validation samples.
        """
        run = self.data.run
        layer, step = self._best(list(run.layers))
        best = self.cells[layer][step - 1, 0, self.test]
        inputs = [self._best([name]) for name in self.cells if name not in run.layers]
        others = {name: self.cells[name][at - 1, 0, self.test] for name, at in inputs}
        prompt = self._from_prompts()
        shuffled = [self._best_of_draw(draw) for draw in range(1, len(self.truth))]
        return NumberRecord(
            best=NumberScore(layer=layer, step=step, spearman=self._interval(best)),
            steps=[self._interval(of_step[0, self.test]) for of_step in self.cells[layer]],
            shuffled=shuffled,
            p=share_as_large(
                _spearman(best, self.truth[0, self.test]), np.array(shuffled, np.float64)
            ),
            inputs={
                name: NumberScore(layer=name, step=at, spearman=self._interval(others[name]))
                for name, at in inputs
            },
            above_inputs={name: self._difference(best, other) for name, other in others.items()},
            partial_inputs=partial_inputs(run, np.flatnonzero(self.data.split != "train")),
            prompt=None if prompt is None else self._interval(prompt),
            above_prompt=None if prompt is None else self._difference(best, prompt),
        )

    def _best(self, layers: list[str], draw: int = 0) -> tuple[str, int]:
        """Find the layer and step (from 1) with the best validation score for one set of targets.

        Args:
            layers: names of the candidate layers.
            draw: 0 for the true numbers; otherwise the index of a permutation of them.
        """
        validation = self.data.split == "validation"
        truth = self.truth[draw, validation]
        cells = np.stack([self.cells[name][:, draw, validation] for name in layers])
        row, column = best_correlated(cells, truth, self.data.prompts[validation])
        return layers[row], column + 1

    def _best_of_draw(self, draw: int) -> float | None:
        """Compute the test score of one permutation of the numbers, at its best layer and step.

        It is undefined, None, if the permutation leaves the test samples with equal numbers.
        """
        layer, step = self._best(list(self.data.run.layers), draw)
        cell = self.cells[layer][step - 1]
        return _or_none(_spearman(cell[draw, self.test], self.truth[draw, self.test]))

    def _from_prompts(self) -> np.ndarray | None:
        """Predict the test samples from prompt embeddings; None if this control is off."""
        study = self.data.run.study
        reads_prompts = study.controls.prompt and study.images is None
        if not reads_prompts or not self.data.run.has_prompt_embeddings:
            return None
        embedding = self.data.run.read("prompts", "embedding").astype(np.float64)
        predicted = self.data.from_features(np.arange(len(embedding)), embedding)
        return np.asarray(predicted[0, self.test, self.number])

    def _interval(self, predicted: np.ndarray) -> Interval:
        return self._of(lambda counts: self._of_draws(counts, predicted), predicted)

    def _difference(self, first: np.ndarray, second: np.ndarray) -> Interval:
        """Compute the interval of the difference between two predictions' rank correlations.

        Both predictions, `first` and `second`, are correlated with the true numbers, over the test
        samples for which both are finite.
        """
        both = np.isfinite(first) & np.isfinite(second)
        a, b = np.where(both, first, np.nan), np.where(both, second, np.nan)
        return self._of(lambda counts: self._of_draws(counts, a) - self._of_draws(counts, b), a)

    def _of_draws(self, counts: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return rank_correlation(counts, predicted, self.truth[0, self.test])

    def _of(self, statistic: Callable[[np.ndarray], np.ndarray], predicted: np.ndarray) -> Interval:
        return self.bootstrap.interval_of_statistic(statistic, np.isfinite(predicted))


def best_correlated(cells: np.ndarray, truth: np.ndarray, prompts: np.ndarray) -> tuple[int, int]:
    """Find the layer and step whose predictions have the best rank correlation with the truth.

    The correlation of two images is always 1 or -1.  Cells whose predictions are defined in few
    prompts are therefore not compared.

    Args:
        cells: predictions (layer, step, validation sample); NaN if undefined.
        truth, prompts: number and prompt of each sample, (validation sample,).

    Returns:
        indices of the layer and the step.
    """
    rows = cells.reshape(-1, len(truth))
    scores = np.array([_spearman(row, truth) for row in rows])
    counts = np.array([len(np.unique(prompts[np.isfinite(row + truth)])) for row in rows])
    scores = np.where(enough_defined(counts, MINIMUM_CLUSTERS), scores, -np.inf)
    layer, step = np.unravel_index(int(scores.argmax()), cells.shape[:2])
    return int(layer), int(step)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Compute Spearman's rank correlation over samples without NaN; minus infinity if undefined."""
    value = float(rank_correlation(np.ones((1, len(a))), a, b)[0]) if len(a) else np.nan
    return value if np.isfinite(value) else -np.inf


def _or_none(correlation: float) -> float | None:
    """Convert an undefined correlation, minus infinity, to None, which JSON can hold."""
    return correlation if np.isfinite(correlation) else None
