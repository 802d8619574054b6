"""Summary of a finished run: best cells, intervals of their scores, controls and emergence."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.analysis.class_curves import class_curves
from ldmprobe_core.analysis.nonfinite import count_nonfinite
from ldmprobe_core.analysis.records import (
    CellRecord,
    ControlRecord,
    ControlsRecord,
    EmergenceRecord,
    LeadRecord,
    PropertyRecord,
    Summary,
    UndefinedRecord,
)
from ldmprobe_core.labelers.registry import labelers_of
from ldmprobe_core.pipeline.labels import as_label, label_set
from ldmprobe_core.probing.bootstrap import Bootstrap, Interval
from ldmprobe_core.probing.detection import position_cut
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.measured import missing_share
from ldmprobe_core.probing.metrics import HeadlineScorer, score_maps
from ldmprobe_core.storage.run import SOURCES, Run
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.splits import SPLITS


@dataclass(frozen=True)
class Curves:
    """Scores over steps of one property on the test samples, in the headline metric.

    Attributes:
        probe: scores of the best layer at each step, (step, sample).
        conditions: scores of the controls in the same cells, (step, sample) by name of the control.
        sources: scores of the image labeler on the images of each step, (step, sample) by source
            of the images.
        position: scores of the position baseline, (sample,).
        latents: scores of probes on the denoiser's input, (step, sample); None if the study
            disables that control.
        cells: mean score over test samples of the probes of `kind` in each cell, (step, layer).
        kind: kind of the probe in the best cell.
    """

    probe: np.ndarray
    conditions: dict[str, np.ndarray]
    sources: dict[str, np.ndarray]
    position: np.ndarray
    latents: np.ndarray | None
    cells: np.ndarray
    kind: str


@dataclass(frozen=True)
class RunAnalysis:
    """Results of a run: its summary, and the scores that the figures of its report show.

    Attributes:
        summary: contents of ``summary.json``.
        curves: scores over steps by property.
        bootstrap: resamples of the test prompts.
        test: indices of the test samples, (test sample,).
    """

    summary: Summary
    curves: dict[str, Curves]
    bootstrap: Bootstrap
    test: np.ndarray


def summarise(run: Run, seconds: dict[str, float]) -> RunAnalysis:
    """Summarise all scores of a finished run.

    The best cells are chosen on validation samples, and their scores are given on test samples.

    Args:
        run: finished run.
        seconds: wall time by stage, which the summary reports.

    Raises:
        RuntimeError: the run is not finished.
    """
    run.progress.require_complete("probed")
    study, samples, labels = run.study, run.samples, label_set(run)
    is_test = np.array([samples[i].split == "test" for i in labels.heldout])
    test = labels.heldout[is_test]
    groups = np.array([samples[i].group for i in test])
    bootstrap = Bootstrap(
        groups, study.bootstrap.resamples, study.bootstrap.level, seed=study.prompts.seed
    )
    steps = run.open("progress").sizes["step"]
    properties, curves = {}, {}
    for prop in study.labels.maps:
        scores = PropertyScores(run, prop, is_test, bootstrap)
        truth = labels.maps[prop][test]
        position = _position_scores(prop, labels, test)
        curves[prop] = scores.curves(
            position[0], _image_labeler_scores(run, prop, test, truth, steps)
        )
        missing = missing_share(labels.maps[prop])
        properties[prop] = scores.to_record(position, curves[prop], truth, missing)
    attributes = run.attributes
    nonfinite, nonfinite_cells = count_nonfinite(run)
    counts = {"total": len(samples)}
    for split in SPLITS:
        counts[split] = sum(sample.split == split for sample in samples)
    counts["test_groups"] = bootstrap.groups
    classes = None
    if study.labels.classes:
        classes = class_curves(run, bootstrap.level, len(bootstrap.counts))
    summary = Summary(
        study=study.name,
        study_hash=study.hash,
        model_fingerprint=attributes["model_fingerprint"],
        samples=counts,
        steps=steps,
        layers=len(run.layers),
        properties=properties,
        classes=classes,
        labelers=_labeler_scores(run, test, labels, bootstrap),
        nonfinite=nonfinite["trained"],
        nonfinite_permuted=nonfinite.get("permuted"),
        nonfinite_cells=nonfinite_cells,
        seconds={name: round(value, 1) for name, value in seconds.items()},
        bytes=run.location.size(),
        versions=attributes["versions"],
        notes=tuple(attributes.get("notes", ())),
    )
    return RunAnalysis(summary, curves, bootstrap, test)


def _position_scores(prop: str, labels: LabelSet, test: np.ndarray) -> np.ndarray:
    """Score the position baseline on the test samples, (metric, test sample)."""
    maps, mean_map = labels.maps[prop], labels.means[prop]
    tuning = labels.train if len(labels.train) else labels.validation
    predicted = np.broadcast_to(mean_map, (len(test), *mean_map.shape))
    cut = position_cut(mean_map, maps[tuning]) if property_of(prop).is_mask else None
    return score_maps(prop, predicted, maps[test], mean_map, cut=cut)


def _image_labeler_scores(
    run: Run, prop: str, test: np.ndarray, truth: np.ndarray, steps: int
) -> dict[str, np.ndarray]:
    """Score the labeler on the images of each step, (step, test sample) by source of the images."""
    headline = HeadlineScorer(prop, truth)
    return {
        source: np.stack(
            [_source_scores(run, source, prop, test, step, headline) for step in range(steps)]
        )
        for source in SOURCES
    }


def _source_scores(
    run: Run, source: str, prop: str, test: np.ndarray, step: int, headline: HeadlineScorer
) -> np.ndarray:
    """Score the labeler on the images of one step, (n,); NaN if these have no labels."""
    maps = run.read(f"labels_{source}", prop, sample=test, step=step)
    # A property with exact maps but no labeler has no labels of step images.
    if np.isnan(maps).all():
        return np.full(len(test), np.nan)
    return headline.score(as_label(run.study, prop, maps))


class PropertyScores:
    """Scores of one property in all cells; the best cells are chosen on validation samples.

    Args:
        run: a finished run.
        prop: name of the property.
        is_test: whether each held-out sample is a test sample, not a validation sample,
            (held-out sample,) bool.
        bootstrap: bootstrap over the test samples.

    Attributes:
        conditions: names of the conditions; the first is the probe itself, the others are controls.
        test: test scores (condition, kind, metric, step, layer, test sample) float64.
        linear: indices of the linear kinds; only these are candidates for the best cell.
        choice: mean headline score on validation samples, (linear kind, step, layer).
    """

    def __init__(self, run: Run, prop: str, is_test: np.ndarray, bootstrap: Bootstrap) -> None:
        group = run.open(f"scores/{prop}")
        scores = run.read(f"scores/{prop}", "score").astype(np.float64)
        self.prop, self.bootstrap = property_of(prop), bootstrap
        self.conditions = [str(name) for name in group.condition.values]
        self.controls = [name for name in self.conditions[1:] if run.study.controls.enabled(name)]
        self.metrics = self.prop.metrics
        self.kinds = [str(kind) for kind in group.kind.values]
        self.layers, inputs = run.layers, run.probe_inputs
        self.latents = None
        if LATENTS in inputs:
            # The axes are (kind, metric, step, held-out sample).
            self.latents = scores[0, :, :, :, inputs.index(LATENTS)]
        self.is_test = is_test
        layers = [inputs.index(name) for name in self.layers]
        scores = scores[..., layers, :]
        self.test = scores[..., is_test]
        self.linear = [i for i, kind in enumerate(self.kinds) if probe_kind(kind).linear]
        validation = scores[0, self.linear, 0][..., ~is_test]
        n_defined = np.isfinite(validation).sum(-1)
        total = np.where(np.isfinite(validation), validation, 0).sum(-1)
        self.choice = np.where(n_defined > 0, total / np.maximum(n_defined, 1), -np.inf)
        supporting = [i for i in self.linear if probe_kind(self.kinds[i]).supports(self.prop)]
        self.all_undefined = int(np.isnan(scores[0, supporting, 0]).sum())

    def best(self) -> tuple[int, int, int]:
        """Find the cell with the best validation score, as indices (kind, step, layer)."""
        kind, step, layer = np.unravel_index(self.choice.argmax(), self.choice.shape)
        return self.linear[int(kind)], int(step), int(layer)

    def best_at(self, step: int) -> tuple[int, int, int]:
        """Find the best cell of one step (from 0), as indices (kind, step, layer)."""
        choice = self.choice[:, step]
        kind, layer = np.unravel_index(choice.argmax(), choice.shape)
        return self.linear[int(kind)], step, int(layer)

    def of(self, cell: tuple[int, int, int], condition: int = 0, metric: int = 0) -> np.ndarray:
        """Test scores of a cell in one metric, (test sample,)."""
        kind, step, layer = cell
        return self.test[condition, kind, metric, step, layer]

    def all_metrics(self, cell: tuple[int, int, int], condition: int = 0) -> np.ndarray:
        """Test scores of a cell in all metrics, (metric, test sample)."""
        return np.stack([self.of(cell, condition, m) for m in range(len(self.metrics))])

    def curves(self, position: np.ndarray, sources: dict[str, np.ndarray]) -> Curves:
        """Collect the test scores over steps, of the best layer at each step and its controls.

        Args:
            position: scores of the position baseline, (test sample,).
            sources: scores of the image labeler, (step, test sample) by source of the images.
        """
        steps = range(self.test.shape[3])
        best_cells = [self.best_at(step) for step in steps]
        kind = self.best()[0]
        with np.errstate(all="ignore"):
            defined = np.isfinite(self.test[0, kind, 0])
            total = np.where(defined, self.test[0, kind, 0], 0).sum(-1)
            cells = total / defined.sum(-1)
        return Curves(
            probe=np.stack([self.of(cell) for cell in best_cells]),
            conditions={
                name: np.stack([self.of(cell, condition=i) for cell in best_cells])
                for i, name in enumerate(self.conditions)
                if name in self.controls
            },
            sources=sources,
            position=position,
            latents=None
            if self.latents is None
            else np.stack([self._latents_scores(step)[0] for step in steps]),
            cells=cells,
            kind=self.kinds[kind],
        )

    def _latents_scores(self, step: int) -> np.ndarray:
        """Test scores of probes on the latents of a step, (metric, test sample).

        The kind of the probes is the linear kind with the best validation score.
        """
        if self.latents is None:
            raise ValueError("controls.latents: false, so there are no scores on latents")
        linear = self.latents[self.linear, :, step]
        with warnings.catch_warnings():
            # A kind that does not support the property has no scores, and its mean is NaN.
            warnings.simplefilter("ignore", RuntimeWarning)
            validation = np.nanmean(linear[:, 0][:, ~self.is_test], axis=1)
        best = int(np.argmax(np.where(np.isfinite(validation), validation, -np.inf)))
        return linear[best][:, self.is_test]

    def to_record(
        self, position: np.ndarray, curves: Curves, truth: np.ndarray, missing: float
    ) -> PropertyRecord:
        """Build the property's part of ``summary.json``.

        Args:
            position: scores of the position baseline, (metric, test sample).
            curves: result of the method `curves`.
            truth: labels of the test samples, (test sample, y, x).
            missing: fraction, 0..1, of the labels' pixels that were not measured.
        """
        best = self.best()
        undefined = UndefinedRecord(best=int(np.isnan(self.of(best)).sum()), any=self.all_undefined)
        if self.prop.is_mask:
            empty = ~(truth == 1).any((1, 2))
            # On an empty label mask, Dice is 1 only if the prediction is empty too.
            undefined.both_empty = int((empty & (self.of(best) == 1)).sum())
            undefined.truth_empty = int(empty.sum())
        return PropertyRecord(
            best=self._cell(best),
            last=self._cell(self.best_at(self.test.shape[3] - 1)),
            emergence=self._emergence(curves),
            controls=self._controls(best, position),
            undefined=undefined,
            missing=missing,
        )

    def _emergence(self, curves: Curves) -> EmergenceRecord:
        decoded, clean = curves.sources["trajectory"], curves.sources["clean"]
        position, bootstrap = curves.position, self.bootstrap
        return EmergenceRecord(
            probe=bootstrap.emergence(curves.probe, position),
            decoded=bootstrap.emergence(decoded, position),
            clean=bootstrap.emergence(clean, position),
            lead=LeadRecord(
                decoded=bootstrap.lead(curves.probe, decoded, position),
                clean=bootstrap.lead(curves.probe, clean, position),
            ),
        )

    def _controls(self, best: tuple[int, int, int], position: np.ndarray) -> ControlsRecord:
        """Summarise all controls in the best cell; disabled controls are None or absent."""
        records: dict[str, ControlRecord | None] = {
            "position": self._control(position),
            "shuffled_labels": None,
            "permuted_weights": None,
        }
        if self.latents is not None:
            records["latents"] = self._control(self._latents_scores(best[1]))
        for i, kind in enumerate(self.kinds):
            if i not in self.linear:
                records[kind] = self._control(self.all_metrics((i, *best[1:])))
        for i, name in enumerate(self.conditions):
            if name in self.controls:
                records[name] = self._control(self.all_metrics(best, i))
        return ControlsRecord.model_validate(records)

    def _control(self, values: np.ndarray) -> ControlRecord:
        """Summarise the test scores (metric, sample) of a control."""
        return ControlRecord(
            **dict(self.bootstrap.interval(values[0])),
            partial=self._partial(values),
            undefined=int(np.isnan(values[0]).sum()),
        )

    def _partial(self, values: np.ndarray) -> Interval | None:
        name = self.prop.partial_metric
        if name is None:
            return None
        return self.bootstrap.interval(values[self.metrics.index(name)])

    def _cell(self, cell: tuple[int, int, int]) -> CellRecord:
        kind, step, layer = cell
        values = self.all_metrics(cell)
        return CellRecord(
            step=step + 1,
            layer=self.layers[layer],
            kind=self.kinds[kind],
            metric=self.metrics[0],
            **dict(self.bootstrap.interval(values[0])),
            partial=self._partial(values),
            other={
                name: self.bootstrap.interval(values[i])
                for i, name in enumerate(self.metrics)
                if i > 0
            },
        )


def _labeler_scores(
    run: Run, test: np.ndarray, labels: LabelSet, bootstrap: Bootstrap
) -> dict[str, Interval] | None:
    """Score the labelers against exact maps, by property; None if there are no exact maps."""
    study, labelers = run.study, labelers_of(run.study)
    compared = [p for p in run.exact_properties if p in study.labels.maps and p in labelers]
    intervals = {}
    for prop in compared:
        truth = as_label(study, prop, run.read("exact_maps", prop, sample=test))
        scores = score_maps(prop, labels.maps[prop][test], truth, labels.means[prop])[0]
        intervals[prop] = bootstrap.interval(scores)
    return intervals or None
