"""Records of an intervention: its settings, effects and summary."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from ldmprobe_core.errors import RunError
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import EDIT_CONDITIONS, Intervention
from ldmprobe_core.probing.bootstrap import Bootstrap, Interval
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT

INTERVENTIONS_GROUP = "interventions"
"""Zarr group of the interventions' arrays."""
RECORDS = "edits"
"""Folder of the JSON records, apart from the arrays: Zarr warns of other files in its groups."""


class EffectRecord(BaseModel):
    """Effect of one edit condition over all pairs of sample and target, in the headline metric.

    Attributes:
        mean: score of the labeler's map of the edited image against the target.
        less_unedited: that score less the unedited image's, paired.
        improved: fraction of pairs whose score is higher than the unedited image's.
        outside: mean absolute change of pixel values, 0..1, outside the object and its target.
        kept: fraction of images whose class is unchanged; None if no class is labeled.
    """

    mean: Interval
    less_unedited: Interval
    improved: float
    outside: Interval
    kept: float | None


class InterventionSummary(BaseModel):
    """Contents of an intervention's ``summary.json``.

    Attributes:
        intervention: its settings.
        steps, layers, kind: edited steps and layers, and kind of the probes, defaults filled in.
        metric: the headline metric.
        pairs: number of pairs of sample and target.
        undefined: number of pairs without a defined score, over all conditions.
        unedited: score of the unedited images against the targets.
        effects: effect by edit condition: the edit and its controls.
        seconds: wall time.
    """

    intervention: Intervention
    steps: int
    layers: list[str]
    kind: str
    metric: str
    pairs: int
    undefined: int
    unedited: Interval
    effects: dict[str, EffectRecord]
    seconds: float


def edit_conditions(spec: Intervention) -> tuple[str, ...]:
    """Names of an intervention's conditions: the edit itself, then its controls if enabled."""
    return EDIT_CONDITIONS if spec.controls else EDIT_CONDITIONS[:1]


def read_intervention(run: Run, name: str) -> Intervention:
    """Read the settings of an intervention.

    Raises:
        UserError: the run has no intervention of this name.
        RunError: the record is damaged, or of another intervention.
    """
    file = f"{RECORDS}/{name}/intervention.json"
    spec = run.location.read_record(file, Intervention, "put back a copy of it")
    if spec.name != name:  # the name has the hash of the settings
        raise RunError(
            f"{run.url}: {file} holds the settings of {spec.name}. Fix: put back a copy of it"
        )
    return spec


def summarise_intervention(run: Run, name: str, seconds: float) -> InterventionSummary:
    """Summarise a finished intervention and write its ``summary.json``.

    Args:
        seconds: wall time, for the record.

    Raises:
        RuntimeError: a batch of it is not finished.
    """
    group = f"{INTERVENTIONS_GROUP}/{name}"
    if not run.progress_of(group).completed(EDIT).all():
        raise RuntimeError(f"intervention: {name} of {run.url} is not finished. Fix: resume it.")
    data = run.open(group, require_complete=True)
    study, spec = run.study, read_intervention(run, name)
    plan = plan_intervention(run, spec)
    prompts = [run.samples[i].prompt for i in plan.samples]
    groups = np.array(prompts * len(spec.targets))  # in the order of the arrays: (target, sample)
    bootstrap = Bootstrap(groups, study.bootstrap.resamples, study.bootstrap.level, seed=0)
    unedited = data.unedited.values[0].ravel().astype(float)
    effects = {}
    undefined = 0
    for i, condition in enumerate(edit_conditions(spec)):
        score = data.score.values[i, 0].ravel().astype(float)
        gap = score - unedited
        defined = np.isfinite(gap)
        undefined += int((~defined).sum())
        same_class = data.kept.values[i].ravel()
        effects[condition] = EffectRecord(
            mean=bootstrap.interval(np.where(defined, score, np.nan)),
            less_unedited=bootstrap.interval(gap),
            improved=float((gap[defined] > 0).mean()) if defined.any() else 0.0,
            outside=bootstrap.interval(data.outside.values[i].ravel().astype(float)),
            kept=float(same_class.mean()) if np.isfinite(same_class).all() else None,
        )
    summary = InterventionSummary(
        intervention=spec, steps=plan.steps, layers=plan.layers, kind=plan.kind,
        metric=spec.defaults.metrics[0], pairs=len(groups), undefined=undefined,
        unedited=bootstrap.interval(unedited), effects=effects, seconds=round(seconds, 1),
    )  # fmt: skip
    run.location.write_text(
        f"{RECORDS}/{name}/summary.json", summary.model_dump_json(indent=2) + "\n"
    )
    return summary


def has_intervention_summary(run: Run, name: str) -> bool:
    """Whether the intervention is finished and summarised."""
    return run.location.has(f"{RECORDS}/{name}/summary.json")


def read_intervention_summary(run: Run, name: str) -> InterventionSummary:
    """Read the summary of a finished intervention.

    Raises:
        UserError: the intervention has no summary yet.
        RunError: the summary is damaged.
    """
    remedy = "remove it, and repeat `ldmprobe intervene` with the same options"
    file = f"{RECORDS}/{name}/summary.json"
    return run.location.read_record(file, InterventionSummary, remedy)


def completed_interventions(run: Run) -> list[str]:
    """Names of the run's interventions that have a summary."""
    return [name for name in run.location.folders(RECORDS) if has_intervention_summary(run, name)]
