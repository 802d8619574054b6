"""What a run found, in numbers: the contents of ``summary.json``.

Everything that is chosen (best cell, layer at each step, kind of probe) is chosen on validation
samples; everything that is reported is measured on test samples, with bootstrap intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ldmprobe_core.cells import LabelSet
from ldmprobe_core.controls import position_prediction
from ldmprobe_core.emergence import Bootstrap, Emergence, Interval
from ldmprobe_core.labelers import labelers_of
from ldmprobe_core.layout import VARIANTS
from ldmprobe_core.metrics import METRICS, score_maps
from ldmprobe_core.probes import serves
from ldmprobe_core.stages import label_set, samples_of
from ldmprobe_core.store import Run

SOURCES = ("trajectory", "clean")
"""What the image labelers read at each step: decoded latents, and the predicted clean image."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cell(_Record):
    """One cell with its score on the test samples.

    Attributes:
        residual: the same probe's residual score (position taken off); None for masks.
        other: the remaining metrics.
    """

    step: int
    layer: str
    kind: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None
    residual: Interval | None = None
    other: dict[str, Interval] = Field(default_factory=dict)


class EmergenceOf(_Record):
    """Emergence in the probes, in labelers on decoded latents, and on predicted clean images."""

    probe: Emergence
    image: Emergence
    clean: Emergence


class Control(Interval):
    """A control's score in the best cell and, for maps, its residual score.

    Attributes:
        undefined: test samples whose score is undefined, left out of the mean.
    """

    residual: Interval | None = None
    undefined: int = 0


class Controls(_Record):
    """The best cell's metric where it should be lower; None where a control was switched off."""

    position: Control
    shuffled: Control | None
    permuted: Control | None


class Undefined(_Record):
    """Samples without a defined score.

    Attributes:
        best: test samples undefined in the best cell's headline metric.
        any: scores undefined over all cells and held-out samples, headline metric.
        both_empty: test samples whose mask is empty in label and best prediction, scored 1.
        truth_empty: test samples whose label mask is empty.
    """

    best: int
    any: int
    both_empty: int = 0
    truth_empty: int = 0


class Property(_Record):
    """What was found of one property."""

    best: Cell
    last: Cell
    emergence: EmergenceOf
    controls: Controls
    undefined: Undefined


class Classes(_Record):
    """The class labeler on finished images, by step.

    Attributes:
        accuracy: share of all samples whose finished image is given the class of its prompt; None
            where prompts name no class.
        confident: share of finished images with a top probability above 0.9.
        agreement: by source, for each step the share of images already given the class of the
            finished image.
    """

    accuracy: Interval | None
    confident: float
    agreement: dict[str, list[float]]


class Summary(_Record):
    """The contents of ``summary.json``.

    Attributes:
        labelers: by property, the labeler's score against the exact maps of the same test samples:
            the ceiling of what probes trained on its labels can be shown to know.  None where no
            exact maps are known.
    """

    study: str
    study_hash: str
    model_fingerprint: str
    samples: dict[str, int]
    steps: int
    layers: int
    properties: dict[str, Property]
    classes: Classes | None = Field(serialization_alias="class", validation_alias="class")
    labelers: dict[str, Interval] | None = None
    nonfinite: int
    nonfinite_permuted: int | None = None
    seconds: dict[str, float]
    bytes: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Curves:
    """Scores of one property on the test samples, headline metric, for figures.

    Attributes:
        probe: best layer of each step, (step, sample).
        variants: controls in the same cells, name to (step, sample).
        sources: image labelers, source to (step, sample).
        position: (sample,).
        cells: (step, layer) mean of the best kind over test samples.
        kind: that kind.
    """

    probe: np.ndarray
    variants: dict[str, np.ndarray]
    sources: dict[str, np.ndarray]
    position: np.ndarray
    cells: np.ndarray
    kind: str


@dataclass(frozen=True)
class Findings:
    """A run's scores, read once, with the choices made on validation samples."""

    summary: Summary
    curves: dict[str, Curves]
    bootstrap: Bootstrap
    test: np.ndarray  # sample indices


def summarise(run: Run, seconds: dict[str, float]) -> Findings:
    """Read all scores of a finished run and condense them.

    Args:
        seconds: wall time of each stage.

    Raises:
        RuntimeError: the run is not finished.
    """
    run.require_all("probed")
    study = run.study()
    labels = label_set(run)
    samples = samples_of(run)
    is_test = np.array([samples[i].split == "test" for i in labels.held])
    test = labels.held[is_test]
    prompts = np.array([samples[i].prompt for i in test])
    bootstrap = Bootstrap(
        prompts, study.statistics.resamples, study.statistics.level, seed=study.prompts.seed
    )
    properties, curves = {}, {}
    for prop in study.labels.maps:
        scores = run.read(f"scores/{prop}", "score").astype(np.float64)
        reader = _Property(run, prop, scores, is_test, bootstrap)
        truth = labels.maps[prop][test]
        mean_map = labels.mean_map(prop)
        position = score_maps(
            prop,
            position_prediction(prop, labels.maps[prop][labels.train], len(test)),
            truth,
            mean_map,
        )
        sources = {}
        for source in SOURCES:
            seen = run.read(f"labels_{source}", prop, sample=test)
            if prop == "foreground":
                seen = seen > study.labels.threshold
            by_step = [
                score_maps(prop, seen[:, t], truth, mean_map)[0] for t in range(seen.shape[1])
            ]
            sources[source] = np.stack(by_step)
        curves[prop] = reader.curves(position[0], sources)
        properties[prop] = reader.condense(position, curves[prop], truth)
    attributes = run.attributes()
    nonfinite = {
        group: sum(int(run.read(f"{group}/{name}", "nonfinite").sum()) for name in run.layers)
        for group in ("activations", *(("permuted",) if study.controls.permuted else ()))
    }
    counts = {"total": len(samples)}
    for split in ("train", "validation", "test"):
        counts[split] = sum(sample.split == split for sample in samples)
    counts["test_prompts"] = bootstrap.groups
    summary = Summary.model_validate(
        {
            "study": study.name,
            "study_hash": study.hash,
            "model_fingerprint": attributes["model_fingerprint"],
            "samples": counts,
            "steps": run.open("marks").sizes["step"],
            "layers": len(run.layers),
            "properties": properties,
            "class": _classes(run, bootstrap) if study.labels.classes else None,
            "labelers": _against_truth(run, test, labels, bootstrap),
            "nonfinite": nonfinite["activations"],
            "nonfinite_permuted": nonfinite.get("permuted"),
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "bytes": run.size(),
            "versions": attributes["versions"],
        }
    )
    return Findings(summary, curves, bootstrap, test)


class _Property:
    """One property's scores: (variant, kind, metric, step, layer, held sample)."""

    def __init__(
        self, run: Run, prop: str, scores: np.ndarray, is_test: np.ndarray, bootstrap: Bootstrap
    ) -> None:
        self.prop, self.bootstrap = prop, bootstrap
        self.controls = [name for name in VARIANTS[1:] if getattr(run.study().controls, name)]
        self.metrics = METRICS[prop]
        self.kinds = [str(k) for k in run.open(f"scores/{prop}").kind.values]
        self.layers = run.layers
        self.test = scores[..., is_test]
        # Choices are made here, on validation samples: (kind, step, layer), headline metric.
        validation = scores[0, :, 0][..., ~is_test]
        number = np.isfinite(validation).sum(-1)
        total = np.where(np.isfinite(validation), validation, 0).sum(-1)
        self.choice = np.where(number > 0, total / np.maximum(number, 1), -np.inf)
        serving = [i for i, kind in enumerate(self.kinds) if serves(kind, prop)]
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

    def of(self, cell: tuple[int, int, int], variant: int = 0, metric: int = 0) -> np.ndarray:
        """Scores (test sample,) of a cell."""
        kind, step, layer = cell
        return self.test[variant, kind, metric, step, layer]

    def curves(self, position: np.ndarray, sources: dict[str, np.ndarray]) -> Curves:
        steps = range(self.test.shape[3])
        path = [self.best_at(step) for step in steps]
        kind = self.best()[0]
        with np.errstate(all="ignore"):
            defined = np.isfinite(self.test[0, kind, 0])
            total = np.where(defined, self.test[0, kind, 0], 0).sum(-1)
            cells = total / defined.sum(-1)
        return Curves(
            probe=np.stack([self.of(cell) for cell in path]),
            variants={
                name: np.stack([self.of(cell, variant=i) for cell in path])
                for i, name in enumerate(VARIANTS)
                if name in self.controls
            },
            sources=sources,
            position=position,
            cells=cells,
            kind=self.kinds[kind],
        )

    def condense(self, position: np.ndarray, curves: Curves, truth: np.ndarray) -> dict[str, Any]:
        best = self.best()
        controls: dict[str, Any] = {
            "position": self._control(position),
            "shuffled": None,
            "permuted": None,
        }
        for i, name in enumerate(VARIANTS):
            if name in curves.variants:
                values = np.stack([self.of(best, i, m) for m in range(len(self.metrics))])
                controls[name] = self._control(values)
        emergence = {
            "probe": self.bootstrap.emergence(curves.probe, curves.position),
            "image": self.bootstrap.emergence(curves.sources["trajectory"], curves.position),
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
            "emergence": {name: value.model_dump() for name, value in emergence.items()},
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
    study = run.study()
    read = [p for p in run.truth if p in study.labels.maps and p in labelers_of(study)]
    found = {}
    for prop in read:
        truth = run.read("truth", prop, sample=test)
        if prop == "foreground":
            truth = truth > study.labels.threshold
        scores = score_maps(prop, labels.maps[prop][test], truth, labels.mean_map(prop))[0]
        found[prop] = bootstrap.interval(scores).model_dump()
    return found or None


def _classes(run: Run, bootstrap: Bootstrap) -> dict[str, Any]:
    labels = run.open("labels").load()
    names = [str(c) for c in labels["class"].values]
    final = labels.class_score.values
    top = final.argmax(1)
    samples = samples_of(run)
    known = [i for i, sample in enumerate(samples) if sample.category in names]
    accuracy = None
    if known:
        right = np.array([names[top[i]] == samples[i].category for i in known], dtype=np.float64)
        prompts = np.array([samples[i].prompt for i in known])
        whole = Bootstrap(prompts, len(bootstrap.counts), bootstrap.level, seed=0)
        accuracy = whole.interval(right).model_dump()
    agreement = {}
    for source in SOURCES:
        scores = run.read(f"labels_{source}", "class_score")
        agreement[source] = [float(x) for x in (scores.argmax(2) == top[:, None]).mean(0)]
    return {
        "accuracy": accuracy,
        "confident": float((final.max(1) > 0.9).mean()),
        "agreement": agreement,
    }
