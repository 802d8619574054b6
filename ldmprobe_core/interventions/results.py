"""JSON records of an intervention in a run: its settings and the summary of its effects."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from ldmprobe_core.errors import RunError
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import EDIT_CONDITIONS, Intervention
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT

INTERVENTIONS_GROUP = "interventions"
"""Zarr group that contains the arrays of all interventions."""
RECORDS = "edits"
"""Folder of the JSON records; separate from the arrays, as Zarr warns of foreign files."""


class EffectRecord(BaseModel):
    """Effect of the edit, or of one control, over all pairs of sample and target.

    Attributes:
        mean: mean score against the target, in the property's headline metric, of the labeler's map
            of the edited image.
        less_unedited: mean difference between this score and the score of the unedited image.
        improved: fraction of pairs in which the edited image scores higher than the unedited one.
        outside: mean absolute change of pixel values, 0..1, outside the object and its target.
        kept: fraction of images whose top class is unchanged; None if the run has no class labels.
    """

    mean: Interval
    less_unedited: Interval
    improved: float
    outside: Interval
    kept: float | None


class InterventionSummary(BaseModel):
    """Contents of an intervention's ``summary.json``.

    Attributes:
        intervention: settings of the intervention.
        steps: number of edited steps.
        layers: names of the edited layers.
        kind: kind of the probes that give the edit directions.
        metric: headline metric, in which the scores are given.
        pairs: number of pairs of sample and target.
        undefined: number of scores that are undefined, over all pairs and conditions.
        unedited: score of the unedited images against the targets.
        effects: effects of the edit and of each control, by name of the condition.
        seconds: wall time of the intervention.
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
    """List the conditions of an intervention: the edit itself, then its controls if enabled."""
    return EDIT_CONDITIONS if spec.controls else EDIT_CONDITIONS[:1]


def read_intervention(run: Run, name: str) -> Intervention:
    """Read the settings of an intervention.

    Raises:
        UserError: the run has no intervention of this name.
        RunError: the record is damaged, or belongs to another intervention.
    """
    file = f"{RECORDS}/{name}/intervention.json"
    spec = run.location.read_record(file, Intervention, "put back a copy of it")
    # The name contains the hash of the settings, so a different name shows that the file is another
    # intervention's.
    if spec.name != name:
        raise RunError(
            f"{run.url}: {file} holds the settings of another intervention ({spec.name}). Fix: "
            "restore it from a copy."
        )
    return spec


def summarise_intervention(run: Run, name: str, seconds: float) -> InterventionSummary:
    """Summarise a finished intervention and write its ``summary.json``.

    Args:
        run: run that contains the intervention.
        name: name of the intervention.
        seconds: wall time of the intervention, which the summary reports.

    Raises:
        RuntimeError: some batches of the intervention are not finished.
    """
    group = f"{INTERVENTIONS_GROUP}/{name}"
    if not run.progress_of(group).completed(EDIT).all():
        raise RuntimeError(
            f"intervention: {name} of {run.url} is not finished. Fix: run its remaining edits."
        )
    data = run.open(group, require_complete=True)
    spec = read_intervention(run, name)
    plan = plan_intervention(run, spec)
    # The scores are flattened over the axes (target, sample), so all samples follow each other
    # once for each target.  List the samples in the same order.
    pairs = [run.samples[i] for i in plan.samples] * len(spec.targets)
    bootstrap = Bootstrap.of_samples(pairs, run.study.bootstrap, seed=0)
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
        metric=spec.defaults.metrics[0], pairs=len(pairs), undefined=undefined,
        unedited=bootstrap.interval(unedited), effects=effects, seconds=round(seconds, 1),
    )  # fmt: skip
    run.location.write_text(
        f"{RECORDS}/{name}/summary.json", summary.model_dump_json(indent=2) + "\n"
    )
    return summary


def has_intervention_summary(run: Run, name: str) -> bool:
    """Return True if a run's intervention is finished, that is, has a ``summary.json``."""
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
    """Return the names of the run's interventions that have a summary."""
    return [name for name in run.location.folders(RECORDS) if has_intervention_summary(run, name)]
