"""Checks of an intervention against a run, before any model is loaded."""

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
    """An intervention on a run, checked.

    Attributes:
        samples: indices of who is edited.
        layers: names of the edited layers.
        steps: how many steps are edited.
        kind: of the probes.
    """

    samples: list[int]
    layers: list[str]
    steps: int
    kind: str


def plan_intervention(run: Run, what: Intervention) -> InterventionPlan:
    """Check an intervention against a run, before anything is loaded.

    Raises:
        UserError: the run does not hold what it needs.
    """
    study = run.study
    if study.source == "images":
        raise UserError(
            f"{run.url} looked at pictures and generated none: there is nothing to edit"
        )
    if what.prop not in study.labels.maps:
        raise UserError(
            f"property is {what.prop!r}, and {run.url} has probes of "
            f"{', '.join(study.labels.maps)} only: choose one of them"
        )
    if what.controls and study.capture.keep == "statistics" and not study.controls.shuffled_labels:
        raise UserError(
            f"controls is true, and the statistics of {run.url} hold no sums with shuffled labels "
            "(its study has controls.shuffled_labels false): set controls to false"
        )
    marks = run.progress.completed(PROBE)
    total = len(marks)
    steps = what.steps or min(what.defaults.steps, total)
    if steps > total:
        raise UserError(f"steps is {steps}, and the run has {total}: lower it")
    for glob in what.layers or ():
        if not any(fnmatchcase(name, glob) for name in run.layers):
            raise UserError(f"layers {glob} match none of {', '.join(run.layers)}")
    globs = what.layers or what.defaults.layers
    layers = [
        name
        for name in run.layers
        if any(fnmatchcase(name, glob) for glob in globs) and not name.startswith(VAE)
    ]
    if not layers and what.layers is None:  # a denoiser without a decoder: all of it
        layers = [name for name in run.layers if not name.startswith(VAE)]
    if not layers:
        raise UserError(f"layers {', '.join(globs)} match none of {', '.join(run.layers)}")
    columns = [run.probe_inputs.index(name) for name in layers]
    for step in range(steps):
        missing = [name for name, c in zip(layers, columns, strict=True) if not marks[step, c]]
        if missing:
            raise UserError(
                f"{run.url} has no probe of {missing[0]} at step {step + 1}: finish the run, "
                "then edit"
            )
    kind = _kind(run, what)
    return InterventionPlan(_samples(run, what), layers, steps, kind)


def _kind(run: Run, what: Intervention) -> str:
    """The kind of probes that are edited through.

    Raises:
        UserError: the run has no such probes of the property, or settings do not fit the kind.
    """
    prop, kinds = property_of(what.prop), run.study.linear_kinds
    kind = what.kind or what.defaults.kind
    if kind not in kinds and what.kind is None:
        kind = kinds[0]
    if kind not in kinds or not probe_kind(kind).supports(prop):
        raise UserError(f"kind is {kind!r}, which no probe of {what.prop} in this run is")
    logits = prop.is_mask and probe_kind(kind).mask_output == "logit"
    if what.confidence != DEFAULT_CONFIDENCE and not logits:
        raise UserError(f"confidence is of logits of masks, and kind is {kind}: leave it out")
    if what.method == "adam" and prop.is_mask and not logits:
        raise UserError(f"method adam needs logits of masks, which kind {kind} lacks: use exact")
    return kind


def _samples(run: Run, what: Intervention) -> list[int]:
    split = run.open("samples").split.values[: run.n_stored]
    part = [int(i) for i in np.flatnonzero(split == what.part)]
    if what.chosen is None:
        if what.samples > len(part):
            raise UserError(
                f"samples is {what.samples}, and the run has {len(part)} {what.part} samples: "
                "lower it"
            )
        return part[: what.samples]
    wrong = [i for i in what.chosen if i not in part]
    if wrong:
        raise UserError(
            f"sample {wrong[0]} is not among the run's {what.part} samples, as {part[0]} is"
        )
    return list(what.chosen)
