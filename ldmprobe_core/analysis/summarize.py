"""From a finished run's scores to its summary: choices, intervals, controls, emergence."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldmprobe_core.analysis.class_curves import class_curves
from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.labelers.registry import labelers_of
from ldmprobe_core.pipeline.activation_sinks import ACTIVATION_GROUPS
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.pipeline.statistics import nonfinite_in
from ldmprobe_core.probing.baselines import position_prediction
from ldmprobe_core.probing.bootstrap import Bootstrap
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import supports
from ldmprobe_core.probing.metrics import HeadlineScorer, score_maps
from ldmprobe_core.storage.run import SOURCES, Run
from ldmprobe_core.storage.schema import CONDITIONS
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.properties import METRICS
from ldmprobe_core.study.sections import MLP


@dataclass(frozen=True)
class Curves:
    """Scores of one property on the test samples, headline metric, for figures.

    Attributes:
        probe: best layer of each step, (step, sample).
        latents: the same of probes on the denoiser's input; None where switched off.
        conditions: controls in the same cells, name to (step, sample).
        sources: image labelers, source to (step, sample).
        position: (sample,).
        cells: (step, layer) mean of the best kind over test samples.
        kind: that kind.
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
    """A run's scores, read once, with the choices made on validation samples."""

    summary: Summary
    curves: dict[str, Curves]
    bootstrap: Bootstrap
    test: np.ndarray  # sample indices


def summarise(run: Run, seconds: dict[str, float]) -> RunAnalysis:
    """Read all scores of a finished run and to_record them.

    Args:
        seconds: wall time of each stage.

    Raises:
        RuntimeError: the run is not finished.
    """
    run.progress.require_complete("probed")
    study = run.study
    labels = label_set(run)
    samples = run.samples
    is_test = np.array([samples[i].split == "test" for i in labels.heldout])
    test = labels.heldout[is_test]
    groups = np.array([samples[i].group for i in test])
    bootstrap = Bootstrap(
        groups, study.bootstrap.resamples, study.bootstrap.level, seed=study.prompts.seed
    )
    steps = run.open("progress").sizes["step"]
    properties, curves = {}, {}
    for prop in study.labels.maps:
        scores = run.read(f"scores/{prop}", "score").astype(np.float64)
        spec = PropertyScores(run, prop, scores, is_test, bootstrap)
        truth = labels.maps[prop][test]
        mean_map = labels.means[prop]
        chosen_by = labels.train if len(labels.train) else labels.validation
        headline = HeadlineScorer(prop, truth)
        position = score_maps(
            prop,
            position_prediction(prop, mean_map, labels.maps[prop][chosen_by], len(test)),
            truth,
            mean_map,
        )
        sources = {}
        for source in SOURCES:
            by_step = [
                _headline_of(run, source, prop, test, step, headline) for step in range(steps)
            ]
            sources[source] = np.stack(by_step)
        curves[prop] = spec.curves(position[0], sources)
        properties[prop] = spec.to_record(position, curves[prop], truth)
    attributes = run.attributes()
    nonfinite = {
        group: sum(int(run.read(f"{group}/{name}", "nonfinite").sum()) for name in run.layers)
        for group in (
            "activations",
            *(("activations_permuted",) if study.controls.permuted_weights else ()),
        )
    }
    if study.capture.keep == "statistics":
        for network, group in ACTIVATION_GROUPS.items():
            if group in nonfinite:
                nonfinite[group] += nonfinite_in(run, network)
    counts = {"total": len(samples)}
    for split in ("train", "validation", "test"):
        counts[split] = sum(sample.split == split for sample in samples)
    counts["test_groups"] = bootstrap.groups
    summary = Summary.model_validate(
        {
            "study": study.name,
            "study_hash": study.hash,
            "model_fingerprint": attributes["model_fingerprint"],
            "samples": counts,
            "steps": steps,
            "layers": len(run.layers),
            "properties": properties,
            "class": class_curves(run, bootstrap.level, len(bootstrap.counts))
            if study.labels.classes
            else None,
            "labelers": _against_truth(run, test, labels, bootstrap),
            "nonfinite": nonfinite["activations"],
            "nonfinite_permuted": nonfinite.get("activations_permuted"),
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "bytes": run.location.size(),
            "versions": attributes["versions"],
        }
    )
    return RunAnalysis(summary, curves, bootstrap, test)


def _headline_of(
    run: Run, source: str, prop: str, test: np.ndarray, step: int, headline: HeadlineScorer
) -> np.ndarray:
    """Score of the labeler on one step's images, (n,); NaN where nobody looked at them."""
    seen = run.read(f"labels_{source}", prop, sample=test, step=step)
    if np.isnan(seen).all():  # exact maps
        return np.full(len(test), np.nan)
    return headline.score(seen > run.study.labels.threshold if prop == "foreground" else seen)


class PropertyScores:
    """One property's scores: (condition, kind, metric, step, layer, held sample)."""

    def __init__(
        self, run: Run, prop: str, scores: np.ndarray, is_test: np.ndarray, bootstrap: Bootstrap
    ) -> None:
        self.prop, self.bootstrap = prop, bootstrap
        self.controls = [name for name in CONDITIONS[1:] if getattr(run.study.controls, name)]
        self.metrics = METRICS[prop]
        self.kinds = [str(k) for k in run.open(f"scores/{prop}").kind.values]
        self.layers, probed = run.layers, run.probe_inputs
        self.latents = None
        if LATENTS in probed:
            self.latents = scores[0, :, :, :, probed.index(LATENTS)]  # (kind, metric, step, held)
        self.is_test = is_test
        layers = [probed.index(name) for name in self.layers]
        scores = scores[..., layers, :]
        self.test = scores[..., is_test]
        # Choices are made here, on validation samples: (kind, step, layer), headline metric, and
        # among linear probes only.
        linear = [i for i, kind in enumerate(self.kinds) if kind != MLP]
        validation = scores[0, linear, 0][..., ~is_test]
        number = np.isfinite(validation).sum(-1)
        total = np.where(np.isfinite(validation), validation, 0).sum(-1)
        self.choice = np.where(number > 0, total / np.maximum(number, 1), -np.inf)
        serving = [i for i in linear if supports(self.kinds[i], prop)]
        self.all_undefined = int(np.isnan(scores[0, serving, 0]).sum())

    def best(self) -> tuple[int, int, int]:
        """(kind, step, layer) with the best validation score."""
        kind, step, layer = np.unravel_index(self.choice.argmax(), self.choice.shape)
        return int(kind), int(step), int(layer)

    def best_at(self, step: int) -> tuple[int, int, int]:
        """The same, of one step."""
        at = self.choice[:, step]
        kind, layer = np.unravel_index(at.argmax(), at.shape)
        return int(kind), step, int(layer)

    def of(self, cell: tuple[int, int, int], condition: int = 0, metric: int = 0) -> np.ndarray:
        """Scores (test sample,) of a cell."""
        kind, step, layer = cell
        return self.test[condition, kind, metric, step, layer]

    def curves(self, position: np.ndarray, sources: dict[str, np.ndarray]) -> Curves:
        """Scores over steps, of the best layer of each step."""
        steps = range(self.test.shape[3])
        path = [self.best_at(step) for step in steps]
        kind = self.best()[0]
        with np.errstate(all="ignore"):
            defined = np.isfinite(self.test[0, kind, 0])
            total = np.where(defined, self.test[0, kind, 0], 0).sum(-1)
            cells = total / defined.sum(-1)
        return Curves(
            probe=np.stack([self.of(cell) for cell in path]),
            conditions={
                name: np.stack([self.of(cell, condition=i) for cell in path])
                for i, name in enumerate(CONDITIONS)
                if name in self.controls
            },
            sources=sources,
            position=position,
            latents=None
            if self.latents is None
            else np.stack([self._of_latents(step)[0] for step in steps]),
            cells=cells,
            kind=self.kinds[kind],
        )

    def _of_latents(self, step: int) -> np.ndarray:
        """Scores (metric, test sample) on the latents of a step, the better kind by validation."""
        assert self.latents is not None
        linear = self.latents[: len(self.choice), :, step]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a kind that does not serve: NaN
            validation = np.nanmean(linear[:, 0][:, ~self.is_test], axis=1)
        best = int(np.argmax(np.where(np.isfinite(validation), validation, -np.inf)))
        return linear[best][:, self.is_test]

    def to_record(self, position: np.ndarray, curves: Curves, truth: np.ndarray) -> dict[str, Any]:
        """The property's part of ``summary.json``."""
        best = self.best()
        controls: dict[str, Any] = {
            "position": self._control(position),
            "shuffled_labels": None,
            "permuted_weights": None,
        }
        if self.latents is not None:
            controls["latents"] = self._control(self._of_latents(best[1]))
        if MLP in self.kinds:
            cell = (self.kinds.index(MLP), *best[1:])
            values = np.stack([self.of(cell, metric=m) for m in range(len(self.metrics))])
            controls["mlp"] = self._control(values)
        for i, name in enumerate(CONDITIONS):
            if name in curves.conditions:
                values = np.stack([self.of(best, i, m) for m in range(len(self.metrics))])
                controls[name] = self._control(values)
        emergence = {
            "probe": self.bootstrap.emergence(curves.probe, curves.position),
            "decoded": self.bootstrap.emergence(curves.sources["trajectory"], curves.position),
            "clean": self.bootstrap.emergence(curves.sources["clean"], curves.position),
        }
        undefined = {"best": int(np.isnan(self.of(best)).sum()), "any": self.all_undefined}
        if self.prop == "foreground":
            empty = ~truth.any((1, 2))
            # A score of 1 on an empty label mask can only mean that the prediction is empty too.
            both = int((empty & (self.of(best) == 1)).sum())
            undefined |= {"both_empty": both, "truth_empty": int(empty.sum())}
        return {
            "best": self._cell(best),
            "last": self._cell(self.best_at(self.test.shape[3] - 1)),
            "emergence": {
                **{name: value.model_dump() for name, value in emergence.items()},
                "lead": {
                    name: self.bootstrap.lead(
                        curves.probe, curves.sources[source], curves.position
                    ).model_dump()
                    for name, source in (("decoded", "trajectory"), ("clean", "clean"))
                },
            },
            "controls": controls,
            "undefined": undefined,
        }

    def _control(self, values: np.ndarray) -> dict[str, Any]:
        """Headline interval and residual of scores (metric, sample)."""
        found = self.bootstrap.interval(values[0]).model_dump()
        undefined = int(np.isnan(values[0]).sum())
        return found | {"residual": self._residual(values), "undefined": undefined}

    def _residual(self, values: np.ndarray) -> dict[str, Any] | None:
        name = f"{self.metrics[0]}_residual"
        if name not in self.metrics:
            return None
        return self.bootstrap.interval(values[self.metrics.index(name)]).model_dump()

    def _cell(self, cell: tuple[int, int, int]) -> dict[str, Any]:
        kind, step, layer = cell
        values = np.stack([self.of(cell, metric=m) for m in range(len(self.metrics))])
        head = self.bootstrap.interval(values[0]).model_dump()
        return {
            "step": step + 1,
            "layer": self.layers[layer],
            "kind": self.kinds[kind],
            "metric": self.metrics[0],
            **head,
            "residual": self._residual(values),
            "other": {
                name: self.bootstrap.interval(values[i]).model_dump()
                for i, name in enumerate(self.metrics)
                if i > 0
            },
        }


def _against_truth(
    run: Run, test: np.ndarray, labels: LabelSet, bootstrap: Bootstrap
) -> dict[str, Any] | None:
    """Headline score of each labeler's maps against the exact ones, where both exist."""
    study = run.study
    read = [p for p in run.exact_properties if p in study.labels.maps and p in labelers_of(study)]
    found = {}
    for prop in read:
        truth = run.read("exact_maps", prop, sample=test)
        if prop == "foreground":
            truth = truth > study.labels.threshold
        scores = score_maps(prop, labels.maps[prop][test], truth, labels.means[prop])[0]
        found[prop] = bootstrap.interval(scores).model_dump()
    return found or None
