"""Score curves of probes refitted to other train/validation splits of a run's prompts.

A run has one division.  Another would have trained other probes, and might have chosen another
layer for the curve.  For each *re-split*, the prompts that are not test prompts are divided again
in the same shares, and ridge probes with a position term are fitted and scored on the same test
samples.  So is the position baseline: the probes' position terms change with it, and their gains
over it change less than their scores.

The prompts form at most `MOST_BLOCKS` blocks, whose sums of products are computed once for each
cell.  A re-split assigns blocks, so its sums are sums of blocks, and its probes cost a solution of
the normal equations instead of a pass over the tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ldmprobe_core.analysis.generalization.refits import RefitData, TestScorer, ordered_by_prompt
from ldmprobe_core.pipeline.groups import ACTIVATION_GROUPS
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.detection import best_cut
from ldmprobe_core.probing.inference.selection import choose_layer
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe, predictions
from ldmprobe_core.probing.measured import mean_map
from ldmprobe_core.probing.metrics import mean_of_defined
from ldmprobe_core.probing.ranks import flatten_maps
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import property_of

RESPLITS = 20
"""Number of re-splits, the random train/validation divisions of a run's prompts."""

MOST_BLOCKS = 24
"""Largest number of blocks of prompts, which bounds the memory for their sums of products."""


@dataclass(frozen=True)
class Resplits:
    """Random re-splits, each of which assigns blocks of samples to training or to validation.

    Attributes:
        blocks: indices of the samples of each block.
        train: whether a block is in the training part, (re-split, block) bool.
        validation: whether it is in the validation part, (re-split, block) bool.
    """

    blocks: list[np.ndarray]
    train: np.ndarray
    validation: np.ndarray

    @classmethod
    def draw(cls, labels: LabelSet, prompts: np.ndarray, seed: int) -> Resplits | None:
        """Divide the non-test samples into training and validation at random, `RESPLITS` times.

        All samples of a prompt are in one part.

        Args:
            labels: label maps and splits of the run.
            prompts: prompt or other group of each sample, (sample,).
            seed: seed of the random draws.

        Returns:
            the divisions; None if the run stores the samples of fewer than two training prompts.
        """
        pool = np.sort(np.concatenate([labels.train, labels.validation]))
        n_train = len(np.unique(prompts[labels.train]))
        n_all = len(np.unique(prompts[pool]))
        if n_train < 2:
            return None
        rng = np.random.default_rng([seed, RESPLITS])
        ordered = ordered_by_prompt(pool, prompts[pool], rng)
        starts = np.flatnonzero(prompts[ordered][1:] != prompts[ordered][:-1]) + 1
        by_prompt = np.split(ordered, starts)
        count = min(MOST_BLOCKS, n_all)
        ends = np.arange(1, count + 1) * n_all // count
        bounds = zip([0, *ends[:-1]], ends, strict=True)
        blocks = [np.concatenate(by_prompt[start:end]) for start, end in bounds]
        size = min(max(1, round((1 - n_train / n_all) * count)), count - 1)
        validation = np.stack([rng.permutation(count) < size for _ in range(RESPLITS)])
        return cls(blocks, ~validation, validation)

    @property
    def inflation(self) -> float:
        """Factor that enlarges re-split deviations, which overlapping training sets make too small.

        Training parts overlap, so they differ less than those of independent studies do.  The mean
        of n out of N prompts, drawn without replacement, varies less by the factor 1 - n / N
        (variance), and so do other smooth statistics (Shao & Wu 1989).
        """
        return float(1 / np.sqrt(1 - self.train.mean()))

    @property
    def samples(self) -> np.ndarray:
        """Array of the sample indices of all blocks, concatenated in the order of the blocks.

        Its shape is (member,): a member is a sample that belongs to one of the blocks.
        """
        return np.concatenate(self.blocks)

    def holds(self, part: np.ndarray) -> np.ndarray:
        """Expand flags of blocks (re-split, block) to flags of their samples (re-split, member)."""
        return np.repeat(part, [len(block) for block in self.blocks], axis=1)

    def fit(self, data: RefitData) -> list[LinearProbe]:
        """Fit one probe for each re-split of the prompts, at one layer and step.

        The weights are NaN if a part has no sample with finite activations.
        """
        sums = [data.sums(block[data.finite[block]]) for block in self.blocks]
        probes = []
        for parts in zip(self.train, self.validation, strict=True):
            train, validation = (
                SufficientStatistics.total([sums[i] for i in np.flatnonzero(part)])
                for part in parts
            )
            if train.n and validation.n:
                probes.append(data.fit(train, validation))
            else:
                channels = data.activations.shape[-1]
                probes.append(LinearProbe(np.full(channels, np.nan), np.nan, np.nan))
        return probes

    def predict(self, data: RefitData, probes: list[LinearProbe]) -> np.ndarray:
        """Predict all samples with each re-split's probe, minus the probe's foreground threshold.

        The cut of a probe of a mask is chosen on the training samples of its re-split.

        Args:
            data: activations and labels of all samples.
            probes: result of `fit`.

        Returns:
            (re-split, sample, y, x); NaN for samples with non-finite activations.
        """
        predicted = np.full((len(probes), *data.activations.shape[:3]), np.nan)
        values = predictions(data.activations[data.finite], probes)
        predicted[:, data.finite] = np.moveaxis(values, -1, 0)
        if property_of(data.prop).is_mask:
            for one, held in zip(predicted, self.holds(self.train), strict=True):
                members = self.samples[held]
                weights = data.weights(members)
                one -= best_cut(
                    flatten_maps(one[members]),
                    flatten_maps(data.tokens(members)),
                    None if weights is None else flatten_maps(weights),
                )
        return predicted


class ResplitScorer:
    """Scorer, in the main metric, of probes that are refitted for each re-split of the prompts.

    Args:
        labels: label maps and splits of the run.
        prop: name of the property.
        penalties: candidate relative penalties.
        resplits: divisions of the samples.
        test: indices of the test samples, (test sample,).
    """

    def __init__(
        self,
        labels: LabelSet,
        prop: str,
        penalties: tuple[float, ...],
        resplits: Resplits,
        test: np.ndarray,
    ) -> None:
        self.labels, self.prop, self.penalties, self.resplits = labels, prop, penalties, resplits
        self._of_test = TestScorer(labels, prop, test)
        self._of_samples = TestScorer(labels, prop, resplits.samples)
        self._validation = resplits.holds(resplits.validation)

    def scores(self, activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fit and score one probe for each re-split, at one layer and step.

        Args:
            activations: activations of all samples, (sample, y, x, channel).

        Returns:
            scores of the test samples, (re-split, test sample), and of the validation samples,
            (re-split, member), NaN for members that are not in the validation part.
        """
        data = RefitData(activations, self.labels, self.prop, self.penalties)
        predicted = self.resplits.predict(data, self.resplits.fit(data))
        on_test = [
            self._of_test.scores(one[self._of_test.test], 0.0, headline_only=True)[0]
            for one in predicted
        ]
        return np.stack(on_test), self._validation_scores(predicted[:, self.resplits.samples])

    def position_scores(self, grid: tuple[int, int]) -> np.ndarray:
        """Score the position baseline of every re-split, (re-split, test sample).

        Args:
            grid: number of tokens down and across at which the mean maps are taken.
        """
        labels, prop, rows = self.labels, self.prop, []
        tokens, counts = labels.tokens(prop, grid), labels.token_weights(prop, grid)
        for held in self.resplits.holds(self.resplits.train):
            members = self.resplits.samples[held]
            if counts is None:
                mean = tokens[members].mean(0, keepdims=True)
            else:
                # Images differ in what was measured, so pixels are averaged before blocks.
                mean = block_means(mean_map(labels.maps[prop][members])[None], grid)
            if property_of(prop).is_mask:
                weights = None if counts is None else flatten_maps(counts[members])
                mean -= best_cut(flatten_maps(mean), flatten_maps(tokens[members]), weights)
            predicted = np.broadcast_to(mean, (len(self._of_test.test), *grid))
            rows.append(self._of_test.scores(predicted, 0.0, headline_only=True)[0])
        return np.stack(rows)

    def _validation_scores(self, predicted: np.ndarray) -> np.ndarray:
        """Score predictions (re-split, member, y, x) on the validation samples of each re-split.

        A scorer scores one prediction of every member at once, so the predictions of different
        re-splits, of different members, are scored together.
        """
        scores = np.full(self._validation.shape, np.nan)
        turns = np.where(self._validation, self._validation.cumsum(0), 0)
        for turn in range(1, turns.max() + 1):
            members = np.flatnonzero((turns == turn).any(0))
            numbers = (turns[:, members] == turn).argmax(0)
            tokens = np.full(predicted.shape[1:], np.nan)
            tokens[members] = predicted[numbers, members]
            of_members = self._of_samples.scores(tokens, 0.0, headline_only=True)[0]
            scores[numbers, members] = of_members[members]
        return scores


@dataclass(frozen=True)
class ResplitCurves:
    """Test scores of one property over the steps, at the layer that each re-split chooses.

    Attributes:
        layers: name of the chosen layer by re-split.
        scores: scores of the test samples in the headline metric, (re-split, step, test sample).
        position: their scores of the re-splits' position baselines, (re-split, test sample).
        inflation: as `Resplits.inflation`.
    """

    layers: list[str]
    scores: np.ndarray
    position: np.ndarray
    inflation: float

    @property
    def choices(self) -> dict[str, int]:
        """Number of re-splits that choose each layer, the most frequent first."""
        return dict(Counter(self.layers).most_common())

    @property
    def deviations(self) -> np.ndarray:
        """Deviations of the scores from their mean over re-splits, times `inflation`.

        An undefined score counts as the mean.
        """
        return self._deviations(self.scores)

    @property
    def position_deviations(self) -> np.ndarray:
        """Deviations of position-baseline scores from their mean, times `inflation`."""
        return self._deviations(self.position)

    def _deviations(self, scores: np.ndarray) -> np.ndarray:
        """Subtract the mean over re-splits from scores (re-split, ...); multiply by `inflation`."""
        mean = mean_of_defined(np.moveaxis(scores, 0, -1))
        return self.inflation * np.nan_to_num(scores - mean)


class RunResplits:
    """Re-splits of a run's prompts, scored one layer at a time and then put together.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        candidates: names of the candidate layers of each property.
        test: indices of the test samples, (test sample,).

    Attributes:
        layers: names of all candidate layers; empty if the activations of training samples are not
            stored.
    """

    def __init__(
        self, run: Run, labels: LabelSet, candidates: Mapping[str, Sequence[str]], test: np.ndarray
    ) -> None:
        self._run, self._candidates, study = run, candidates, run.study
        self._prompts = np.array([sample.group for sample in run.samples[: run.n_stored]])
        self._resplits = Resplits.draw(labels, self._prompts, study.prompts.seed)
        self._scorers: dict[str, ResplitScorer] = {}
        self.layers: list[str] = []
        if self._resplits is None:
            return
        self.layers = list(dict.fromkeys(name for names in candidates.values() for name in names))
        for prop in candidates:
            self._scorers[prop] = ResplitScorer(
                labels, prop, study.probes.penalties, self._resplits, test
            )

    def scores(self, layer: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Score the probes of all re-splits at one layer, with one pass over its activations.

        Returns:
            scores of the test samples, (step, re-split, test sample), and of the validation
            samples, (step, re-split, member), by property that has the layer as a candidate.
        """
        sharing = [prop for prop, names in self._candidates.items() if layer in names]
        scores: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {prop: [] for prop in sharing}
        for step in range(self._run.open("progress").sizes["step"]):
            group = f"{ACTIVATION_GROUPS['trained']}/{layer}"
            activations = self._run.read(group, "activation", step=step)
            for prop in sharing:
                scores[prop].append(self._scorers[prop].scores(activations))
        return {
            prop: (np.stack([one for one, _ in cells]), np.stack([other for _, other in cells]))
            for prop, cells in scores.items()
        }

    def curves(
        self, scores: Mapping[str, dict[str, tuple[np.ndarray, np.ndarray]]]
    ) -> dict[str, ResplitCurves]:
        """Compute the score curves of all properties.

        Args:
            scores: results of the method `scores` by layer, of all `layers`.

        Returns:
            curves by property; empty without layers.
        """
        if self._resplits is None:
            return {}
        curves = {}
        for prop, names in self._candidates.items():
            on_test, on_validation = (
                np.stack([scores[name][prop][part] for name in names]) for part in (0, 1)
            )
            sizes = [self._run.open(f"{ACTIVATION_GROUPS['trained']}/{n}").sizes for n in names]
            grid = max(((size["y"], size["x"]) for size in sizes), key=prod)
            curves[prop] = choose_curves(
                names,
                on_test,
                on_validation,
                self._prompts[self._resplits.samples],
                self._scorers[prop].position_scores(grid),
                self._resplits.inflation,
            )
        return curves


def choose_curves(
    layers: Sequence[str],
    on_test: np.ndarray,
    on_validation: np.ndarray,
    prompts: np.ndarray,
    position: np.ndarray,
    inflation: float,
) -> ResplitCurves:
    """Choose each re-split's best layer on validation samples, and collect its test scores.

    Args:
        layers: names of the candidate layers.
        on_test: scores (layer, step, re-split, test sample).
        on_validation: scores (layer, step, re-split, member), NaN outside the validation part.
        prompts: prompt of each member, (member,).
        position: scores of the position baselines, (re-split, test sample).
        inflation: as `Resplits.inflation`.
    """
    chosen = [
        choose_layer(on_validation[:, :, number].swapaxes(0, 1), prompts).layer
        for number in range(on_test.shape[2])
    ]
    curves = [on_test[layer, :, number] for number, layer in enumerate(chosen)]
    return ResplitCurves([layers[i] for i in chosen], np.stack(curves), position, inflation)
