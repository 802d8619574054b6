"""Computation of all generalization analyses, with one pass over each layer's activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.analysis.generalization.categories import (
    category_folds,
    category_scores,
    holdout_record,
)
from ldmprobe_core.analysis.generalization.nested import (
    NestedBlocks,
    code_length_record,
    learning_record,
)
from ldmprobe_core.analysis.generalization.records import (
    AnalysesRecord,
    CodeLengthRecord,
    HoldoutRecord,
    LearningRecord,
)
from ldmprobe_core.analysis.generalization.refits import RefitData, TestScorer
from ldmprobe_core.analysis.generalization.transfer import TransferMatrix
from ldmprobe_core.analysis.property_scores import PropertyScores
from ldmprobe_core.analysis.stored_probes import stored_probes
from ldmprobe_core.pipeline.groups import ACTIVATION_GROUPS
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.storage.run import Run


@dataclass(frozen=True)
class CurveCell:
    """Probes of a property's score curve.

    Attributes:
        prop: name of the property.
        kind: kind of the probes.
        onset: onset step (from 1) of the curve; None if it is undefined.
    """

    prop: str
    kind: str
    onset: int | None


class PropertyAnalyses:
    """Generalization analyses of one property, updated with the activations of one step at a time.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        layer: name of the layer of the property's score curve.
        cell: kind and onset of the curve.
        scores: scores of the property in all cells.
        bootstrap: bootstrap over the test samples.
    """

    def __init__(
        self,
        run: Run,
        labels: LabelSet,
        layer: str,
        cell: CurveCell,
        scores: PropertyScores,
        bootstrap: Bootstrap,
    ) -> None:
        self.study, self.labels, self.prop = run.study, labels, scores.prop.name
        self.bootstrap = bootstrap
        self.samples = run.samples[: run.n_stored]
        self.best_scores = scores.of(scores.best())[0]
        probes = stored_probes(run, layer, cell.kind, self.prop)
        self.scorer = TestScorer(labels, self.prop, labels.heldout[scores.is_test])
        self.transfer = TransferMatrix(probes, self.scorer)
        last = len(probes)
        self.refitted = sorted({cell.onset or last, last}) if len(labels.train) else []
        self.folds = category_folds(self.samples, run.study.prompts.seed)
        self.holdout: list[HoldoutRecord] = []
        self.learning: list[LearningRecord] = []
        self.code_length: list[CodeLengthRecord] = []

    def add(self, step: int, activations: np.ndarray) -> None:
        """Update the analyses with one step's activations, (sample, y, x, channel).

        Steps in `refitted`, where probes are fitted again, need the activations of all samples; for
        other steps, those of the test samples are enough.  If all training samples of a step have
        non-finite activations, no probes are fitted again for it.

        Args:
            step: step of the activations, from 0 (the steps of `refitted` count from 1).
            activations: activations of all samples or of the test samples, as stored.
        """
        test = self.scorer.test
        of_test = activations if len(activations) == len(test) else activations[test]
        self.transfer.add(step, of_test)
        if step + 1 not in self.refitted:
            return
        study, seed, samples = self.study, self.study.prompts.seed, self.samples
        data = RefitData(activations, self.labels, self.prop, study.probes.penalties)
        if not len(data.train):
            return
        nested = NestedBlocks(data, samples, seed)
        learning = learning_record(nested, self.scorer, self.bootstrap, step + 1)
        if learning is not None:
            self.learning.append(learning)
        of_train = Bootstrap.of_samples([samples[i] for i in data.train], study.bootstrap, seed)
        length = code_length_record(nested, of_train, step + 1)
        if length is not None:
            self.code_length.append(length)
        if self.folds is not None:
            self.holdout.append(
                holdout_record(
                    data, self.folds, samples, self.scorer, self.bootstrap, step + 1, seed
                )
            )

    def to_record(self) -> AnalysesRecord:
        """Build the property's record of analyses; call this after `add` has received all steps."""
        samples = [self.samples[i] for i in self.scorer.test]
        settings, seed = self.study.bootstrap, self.study.prompts.seed
        return AnalysesRecord(
            transfer=self.transfer.to_record(),
            categories=category_scores(self.best_scores, samples, settings, seed),
            holdout=self.holdout or None,
            learning=self.learning or None,
            code_length=self.code_length or None,
        )


def layer_analyses(
    run: Run,
    labels: LabelSet,
    bootstrap: Bootstrap,
    layer: str,
    cells: Sequence[CurveCell],
    scores: Sequence[PropertyScores],
) -> dict[str, AnalysesRecord]:
    """Compute the generalization analyses of the properties whose score curves show one layer.

    The properties share the reads.  Steps without refitted probes read the test samples only.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        bootstrap: bootstrap over the test samples.
        layer: name of the layer.
        cells: kind and onset of each property's curve.
        scores: scores of each of these properties in all cells.

    Returns:
        records by property.
    """
    analyses = [
        PropertyAnalyses(run, labels, layer, cell, of_cell, bootstrap)
        for cell, of_cell in zip(cells, scores, strict=True)
    ]
    group = f"{ACTIVATION_GROUPS['trained']}/{layer}"
    for step in range(len(analyses[0].transfer.probes)):
        if any(step + 1 in part.refitted for part in analyses):
            activations = run.read(group, "activation", step=step)
        else:
            test = analyses[0].scorer.test
            activations = run.read(group, "activation", step=step, sample=test)
        for part in analyses:
            part.add(step, activations)
    return {part.prop: part.to_record() for part in analyses}
