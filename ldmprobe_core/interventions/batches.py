"""Generation and scoring of a batch of images with the edit and with each null edit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ldmprobe_core.interventions.changes import (
    EditLog,
    make_change,
    make_null_change,
    patch_from,
)
from ldmprobe_core.interventions.directions import direction_of, probes_of_cell
from ldmprobe_core.interventions.edit import EditDirection
from ldmprobe_core.interventions.editor import Change, Editor, sample_edited
from ldmprobe_core.interventions.measures.readings import ProbeReader
from ldmprobe_core.interventions.measures.scores import change_outside, score_edited_maps
from ldmprobe_core.interventions.null_directions import NULLS
from ldmprobe_core.interventions.plan import InterventionPlan, Site, read_layers
from ldmprobe_core.interventions.spec import DONOR, EDITED, ERASURES, Intervention
from ldmprobe_core.pipeline.label import checked_labels
from ldmprobe_core.pipeline.labels import as_label, cached_label_set, top_classes
from ldmprobe_core.pipeline.model_cache import use_models
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import CLASS, property_of


@dataclass(frozen=True)
class InterventionBatch:
    """Samples that are edited together, with their labels and targets.

    Attributes:
        run: run that contains the intervention.
        spec: settings of the intervention.
        plan: checked intervention.
        samples: indices of the samples.
        donors: indices of the samples that give their activations; empty for other methods.
        labels, targets: label and target maps of the samples, (sample, y, x).
    """

    run: Run
    spec: Intervention
    plan: InterventionPlan
    samples: list[int]
    donors: list[int]
    labels: np.ndarray
    targets: np.ndarray

    def edit_in_all_conditions(self, site: Site, dose: float) -> dict[str, np.ndarray]:
        """Generate images with the edit and each null edit, label them and score them.

        Args:
            site: edited layers and steps.
            dose: dose of exact edits, in standard deviations of the prediction.

        Returns:
            arrays by name: ``image`` (condition, sample, y, x, rgb),
            ``label`` (condition, sample, y, x), ``score`` (condition, measure, sample),
            ``outside``, ``kept``, ``reading`` and ``size`` (condition, sample); for an erasure also
            ``probe_score`` (condition, layer, kind, sample).
        """
        run, prop = self.run, property_of(self.spec.prop)
        unedited = run.read("images", "image", sample=self.samples)
        mean_map = cached_label_set(run.url, run.location.read_text("identity")).means[prop.name]
        results: dict[str, list[np.ndarray]] = {
            "image": [], "label": [], "score": [], "outside": [], "kept": [], "reading": [],
            "size": [], "probe_score": [],
        }  # fmt: skip
        probes = self._probes_read(site)
        logs = {condition: EditLog() for condition in self.spec.conditions}
        with use_models(run) as (sampler, labelers):
            # `logs` starts with the edit proper, because each null edit takes its norms from
            # the log of the edit proper.
            for condition, log in logs.items():
                reader = ProbeReader(probes, dtype=sampler.dtype)
                change = reader.reading(self._change(condition, dose, logs), site.cells)
                editor = Editor(sampler, [*site.cells, *probes], change)
                edited = sample_edited(sampler, [run.samples[i] for i in self.samples], editor)
                maps = _labels(run, prop.name, labelers, edited, self.samples)
                scores = score_edited_maps(
                    prop, as_label(run.study, prop.name, maps), self.labels, self.targets, mean_map
                )
                results["image"].append(edited)
                results["label"].append(maps)
                results["score"].append(scores)
                results["outside"].append(
                    change_outside(unedited, edited, self.labels, self.targets)
                )
                results["kept"].append(class_unchanged(run, labelers, edited, self.samples))
                results["reading"].append(log.mean_reading(len(self.samples)))
                results["size"].append(log.mean_size(len(self.samples)))
                if probes:
                    results["probe_score"].append(
                        reader.scores(prop, self.spec.defaults.metrics[0], self.labels, mean_map)
                    )
        return {array: np.stack(values) for array, values in results.items() if values}

    def _probes_read(self, site: Site) -> dict[tuple[int, str], list[LinearProbe]]:
        """Return the probes to score during an erasure, by step and layer; {} for other methods."""
        if self.spec.method not in ERASURES:
            return {}
        identity = self.run.location.read_text("identity")
        return {
            (step, layer): probes_of_cell(self.run, identity, self.spec, step, layer)
            for step in range(site.first, site.last + 1)
            for layer in read_layers(self.run)
        }

    def _change(self, condition: str, dose: float, logs: dict[str, EditLog]) -> Change:
        """Return the function that changes activations under one condition of the intervention."""
        if self.spec.method == DONOR:
            return patch_from(self._donated)
        if condition in NULLS and NULLS[condition].directions is not None:
            return make_null_change(
                self._direction, condition, self.samples, logs[EDITED], logs[condition]
            )
        aim = self.labels if condition == "own_label" else self.targets
        return make_change(self.spec, self.plan.kind, self._direction, aim, dose, logs[condition])

    def _direction(self, step: int, layer: str) -> EditDirection:
        """Return the cached edit direction of a layer at a step."""
        identity = self.run.location.read_text("identity")
        # Gradients are off during generation, but fitting some kinds of probes needs them.
        with torch.enable_grad():
            return direction_of(self.run.url, identity, self.spec, step, layer)

    def _donated(self, step: int, layer: str) -> np.ndarray:
        """Activations of the donor samples at one layer and step, (sample, y, x, channel)."""
        values = [
            self.run.read(f"activations/{layer}", "activation", step=step - 1, sample=donor)
            for donor in self.donors
        ]
        return np.stack(values)


def class_unchanged(
    run: Run, labelers: dict[str, Any], edited: np.ndarray, samples: list[int]
) -> np.ndarray:
    """Return whether the edit left each sample's top class unchanged, (sample,) float64.

    The value is 1 for an unchanged class, 0 for a changed one or a tie after the edit, and NaN
    without a class labeler, or if several classes tie in the sample's image.
    """
    if CLASS not in labelers:
        return np.full(len(edited), np.nan)
    before = top_classes(run.read("labels", "class_score", sample=samples))
    after = top_classes(_labels(run, CLASS, labelers, edited, samples))
    return np.where(before >= 0, before == after, np.nan)


def _labels(
    run: Run, prop: str, labelers: dict[str, Any], edited: np.ndarray, samples: list[int]
) -> np.ndarray:
    """Apply the labeler of one property to edited images, and check its labels as a run's own.

    Raises:
        RunError: a label is not finite, or a value of a mask or a class probability is not a share.
    """
    (labels,) = checked_labels(run.study, {prop: labelers[prop]}, edited, samples).values()
    return labels
