"""Statistics of one property that need neither its score curves nor other properties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ldmprobe_core.analysis.controls.ceilings import block_ceilings
from ldmprobe_core.analysis.controls.prompt_control import prompt_scores
from ldmprobe_core.analysis.controls.rivals import PART_BYTES
from ldmprobe_core.analysis.controls.same_prompt import read_same_prompt_scores
from ldmprobe_core.analysis.controls.training_size import (
    CorrectedDifference,
    corrected_difference,
    scores_of_halves,
    training_halves,
)
from ldmprobe_core.analysis.property_scores import PropertyScores
from ldmprobe_core.pipeline.groups import samples_in
from ldmprobe_core.probing.detection import position_cut
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.measured import missing_share
from ldmprobe_core.probing.metrics import score_maps
from ldmprobe_core.probing.neighbourhood import probe_features
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import property_of


@dataclass(frozen=True)
class PropertyPart:
    """Statistics of one property that need neither its score curves nor other properties.

    Attributes:
        position: scores of the position baseline, (metric, test sample).
        without_cells: scores of the controls that have no layer and step, (metric, test sample) by
            name.
        ceilings: result of `controls.ceilings.block_ceilings`.
        corrected: score differences to controls, corrected for small training sets, by name.
        missing: fraction, 0..1, of the labels' pixels that were not measured.
    """

    position: np.ndarray
    without_cells: dict[str, np.ndarray]
    ceilings: dict[str, float | None]
    corrected: dict[str, CorrectedDifference]
    missing: float

    @classmethod
    def compute(
        cls, run: Run, scores: PropertyScores, labels: LabelSet, is_test: np.ndarray
    ) -> PropertyPart:
        """Compute the part of the property of `scores`.

        The scores of test samples are NaN if their labels are one constant (`LabelSet.constant`).

        Args:
            run: finished run.
            scores: scores of the property in all cells.
            labels: label maps and splits of the run.
            is_test: whether each held-out sample is a test sample, (held-out sample,) bool.
        """
        prop, test = scores.prop.name, labels.heldout[is_test]
        shapes = [run.open(f"activations/{layer}").sizes for layer in run.layers]
        position = position_scores(prop, labels, test)
        without_cells = _scores_without_cells(run, scores, labels, is_test)
        if labels.constant(prop) is not None:
            position = np.full_like(position, np.nan)
            without_cells = {name: np.full_like(one, np.nan) for name, one in without_cells.items()}
        return cls(
            position,
            without_cells,
            block_ceilings(labels, prop, [(sizes["y"], sizes["x"]) for sizes in shapes], test),
            _corrected_differences(run, scores, labels, is_test),
            missing_share(labels.maps[prop]),
        )

    def to_message(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the part as a record for JSON, and arrays by name."""
        arrays = {"position": self.position}
        arrays |= {f"without_cells/{name}": one for name, one in self.without_cells.items()}
        arrays |= {f"corrected/{name}": one.values for name, one in self.corrected.items()}
        errors = {name: one.error for name, one in self.corrected.items()}
        return {"ceilings": self.ceilings, "errors": errors, "missing": self.missing}, arrays

    @classmethod
    def from_message(cls, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> PropertyPart:
        """Build a part from the result of `to_message`."""

        def of(group: str) -> dict[str, np.ndarray]:
            prefix = f"{group}/"
            return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}

        corrected = {
            name: CorrectedDifference(values, record["errors"][name])
            for name, values in of("corrected").items()
        }
        return cls(
            arrays["position"], of("without_cells"), record["ceilings"], corrected,
            record["missing"],
        )  # fmt: skip


def position_scores(prop: str, labels: LabelSet, test: np.ndarray) -> np.ndarray:
    """Score the training mean map as the prediction of every test sample, (metric, test sample)."""
    maps, mean_map = labels.maps[prop], labels.means[prop]
    tuning = labels.train if len(labels.train) else labels.validation
    cut = position_cut(mean_map, maps[tuning]) if property_of(prop).is_mask else None
    known, full = {}, labels.full(prop)
    if "spearman" in property_of(prop).metrics and full.partly is None:
        known["spearman"] = full.ranked.correlation_with_one(mean_map.ravel(), test)
    # Score large maps in parts, because metrics hold several float64 copies of all of their pixels.
    at_once = max(1, PART_BYTES // (8 * mean_map.size))
    scores = []
    for start in range(0, max(1, len(test)), at_once):
        rows = slice(start, start + at_once)
        of_part = {name: values[rows] for name, values in known.items()}
        scores.append(
            score_maps(prop, mean_map[None], maps[test[rows]], mean_map, cut=cut, known=of_part)
        )
    return np.concatenate(scores, axis=1)


def _scores_without_cells(
    run: Run, scores: PropertyScores, labels: LabelSet, is_test: np.ndarray
) -> dict[str, np.ndarray]:
    """Score the controls that have no layer and step, (metric, test sample) by control name."""
    study, prop = run.study, scores.prop.name
    # Source images share one caption, so there are no prompts to predict from.
    if not study.controls.prompt or study.images is not None:
        return {}
    controls = {}
    # Without stored label maps of training samples (``capture.keep: statistics``), the prompt
    # control cannot be fitted.
    if len(labels.train) > 0 and run.has_prompt_embeddings:
        embedding = run.read("prompts", "embedding")
        controls["prompt"] = prompt_scores(embedding, labels, prop, study.probes.penalties)
        controls["prompt"] = controls["prompt"][:, is_test]
    kind, step, layer = scores.best()
    cell = scores.kinds[kind], step + 1, scores.layers[layer]
    of_others = read_same_prompt_scores(run, prop, labels, labels.heldout[is_test], cell)
    return controls if of_others is None else controls | {"same_prompt": of_others}


def _corrected_differences(
    run: Run, scores: PropertyScores, labels: LabelSet, is_test: np.ndarray
) -> dict[str, CorrectedDifference]:
    """Correct the score differences to the controls for small training sets, by control name.

    Differences to input controls are corrected by refits to halves of the training samples.  For a
    control of a part of the samples, the probe is fitted again to that part, so that both sides of
    the difference have the same samples.  Controls for which neither is possible, because the run
    does not store the activations of training samples or they have few prompts, are left out.
    """
    permuted = [name for name in scores.controls if name in scores.covered]
    refitted = {
        name: _corrected_difference(run, scores, labels, is_test, name)
        for name in (*scores.inputs, *permuted)
    }
    return {name: result for name, result in refitted.items() if result is not None}


def _corrected_difference(
    run: Run, scores: PropertyScores, labels: LabelSet, is_test: np.ndarray, name: str
) -> CorrectedDifference | None:
    """Correct the score difference to one control; None without training samples to refit."""
    study, prop, covered = run.study, scores.prop.name, scores.covered.get(name)
    index = np.arange(run.n_stored)
    if covered is not None:
        index = covered.index[covered.index < run.n_stored]
    known = labels if covered is None else labels.subset(tuple(index.tolist()))
    prompts = np.array([run.samples[i].group for i in index])
    halves: list[np.ndarray] = []
    if name in scores.inputs:
        halves = training_halves(known.train, prompts, study.prompts.seed)
    fits = halves if covered is None else [known.train, *halves]
    if not (fits and len(known.train)):
        return None
    among = np.isin(labels.heldout[is_test], index)
    tested = np.isin(known.heldout, np.flatnonzero(np.isin(index, labels.heldout[is_test])))

    def refits(kind: int, step: int, layer: str, members: list[np.ndarray]) -> np.ndarray:
        group = f"activations/{layer}"
        rows, row = samples_in(run, group), np.flatnonzero(run.read(group, "step") == step + 1)[0]
        positions = np.searchsorted(rows, index)
        activations = run.read(group, "activation", step=int(row), sample=positions)
        features, probe = probe_features(layer, activations), (scores.kinds[kind], prop)
        return scores_of_halves(features, known, study, probe, members)[:, tested]

    kind, step, layer = scores.best()
    of_probe = refits(kind, step, scores.layers[layer], fits)
    if name in scores.inputs:
        kind, step = scores.best_of_input(name)
        of_control = scores.inputs[name][kind, 0, step, is_test]
    else:
        condition = scores.conditions.index(name)
        of_control = scores.of(scores.best(condition), condition)[0]
    whole = scores.of(scores.best())[0]
    if covered is not None:
        whole = np.full(len(among), np.nan)
        whole[among], of_probe = of_probe[0], of_probe[1:]
    difference = whole - of_control
    if not halves:
        return CorrectedDifference(difference, 0.0)
    of_parts = np.full((len(halves), len(among)), np.nan)
    of_parts[:, among] = of_probe - refits(kind, step, name, halves)
    return corrected_difference(difference, of_parts)
