"""Checks that a run has all that an intervention needs, before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.spec import DEFAULT_CONFIDENCE, Intervention
from ldmprobe_core.models.layers import VAE
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE
from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.properties import property_of


@dataclass(frozen=True)
class InterventionPlan:
    """Samples, layers, steps and probe kind of a checked intervention, with defaults filled in.

    Attributes:
        samples: indices of the edited samples.
        layers: names of the edited layers.
        steps: number of edited steps, counted from the first step.
        kind: kind of the probes that give the edit directions.
    """

    samples: list[int]
    layers: list[str]
    steps: int
    kind: str


def plan_intervention(run: Run, spec: Intervention) -> InterventionPlan:
    """Check that a run has the probes, samples and layers of an intervention; fill in defaults.

    Raises:
        UserError: the run lacks the probes, samples or layers that the intervention needs.
    """
    study = run.study
    if study.source == "images":
        raise UserError(
            f"prompts: {run.url} has source images and no prompts, so there is no generation to "
            "edit. Fix: use a run whose study has prompts."
        )
    if spec.prop not in study.labels.maps:
        raise UserError(
            f"prop: {run.url} has no probes of this property ({spec.prop!r}). Fix: set it to one "
            f"of {', '.join(study.labels.maps)}."
        )
    if spec.controls and study.capture.keep == "statistics" and not study.controls.shuffled_labels:
        raise UserError(
            f"controls: {run.url} has no statistics of shuffled labels, which the control needs "
            "(true). Its study sets controls.shuffled_labels to false. Fix: set the "
            "intervention's controls to false."
        )
    completed = run.progress.completed(PROBE)
    total = len(completed)
    steps = spec.steps or min(spec.defaults.steps, total)
    if steps > total:
        raise UserError(
            f"steps: more than the run's {total} sampler steps ({steps}). Fix: set it to {total} "
            "or less."
        )
    for glob in spec.layers or ():
        if not any(fnmatchcase(name, glob) for name in run.layers):
            raise UserError(_no_layers_match(run, glob))
    globs = spec.layers or spec.defaults.layers
    layers = [
        name
        for name in run.layers
        if any(fnmatchcase(name, glob) for glob in globs) and not name.startswith(VAE)
    ]
    # The default globs select a U-Net's decoder.  A transformer has no decoder, so edit all its
    # layers.
    if not layers and spec.layers is None:
        layers = [name for name in run.layers if not name.startswith(VAE)]
    if not layers:
        raise UserError(_no_layers_match(run, ", ".join(globs)))
    columns = [run.probe_inputs.index(name) for name in layers]
    for step in range(steps):
        missing = [
            name
            for name, column in zip(layers, columns, strict=True)
            if not completed[step, column]
        ]
        if missing:
            raise UserError(
                f"probes: {run.url} has no probes of layer {missing[0]} at step {step + 1}. Fix: "
                "finish the run, then repeat the intervention."
            )
    kind = _kind(run, spec)
    return InterventionPlan(_samples(run, spec), layers, steps, kind)


def _no_layers_match(run: Run, globs: str) -> str:
    return (
        f"layers: no layer of the run matches ({globs}). Fix: choose from {', '.join(run.layers)}."
    )


def _kind(run: Run, spec: Intervention) -> str:
    """Return the kind of the probes from which the edit directions are computed.

    Raises:
        UserError: the run has no probes of this kind for the property, or the method or confidence
            does not apply to the kind.
    """
    prop, kinds = property_of(spec.prop), run.study.linear_kinds
    kind = spec.kind or spec.defaults.kind
    if kind not in kinds and spec.kind is None:
        kind = kinds[0]
    if kind not in kinds or not probe_kind(kind).supports(prop):
        usable = [name for name in kinds if probe_kind(name).supports(prop)]
        raise UserError(
            f"kind: the run has no probes of {spec.prop} of this kind ({kind!r}). Fix: set it to "
            f"one of {', '.join(usable)}."
        )
    logits = prop.is_mask and probe_kind(kind).mask_output == "logit"
    if spec.confidence != DEFAULT_CONFIDENCE and not logits:
        raise UserError(
            f"confidence: it applies to probes that predict logits of masks, and {kind} probes of "
            f"{spec.prop} do not ({spec.confidence:g}). Fix: leave confidence out, or set kind to "
            "one that predicts logits."
        )
    if spec.method == "adam" and prop.is_mask and not logits:
        raise UserError(
            f"method: adam needs logits of masks, which probes of kind {kind} do not predict "
            "(adam). Fix: set method to exact."
        )
    return kind


def _samples(run: Run, spec: Intervention) -> list[int]:
    split = run.open("samples").split.values[: run.n_stored]
    available = [int(i) for i in np.flatnonzero(split == spec.part)]
    if spec.chosen is None:
        if spec.samples > len(available):
            raise UserError(
                f"samples: more than the run's {len(available)} {spec.part} samples "
                f"({spec.samples}). Fix: set it to {len(available)} or less."
            )
        return available[: spec.samples]
    wrong = [i for i in spec.chosen if i not in available]
    if wrong:
        raise UserError(
            f"chosen: sample {wrong[0]} is not a {spec.part} sample of this run. Fix: choose from "
            f"{', '.join(str(i) for i in available[:8])}{', ...' if len(available) > 8 else ''}."
        )
    return list(spec.chosen)
