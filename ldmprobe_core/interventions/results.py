"""Records of an intervention: its settings, effects and summary."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import EDIT_CONDITIONS, Intervention
from ldmprobe_core.probing.bootstrap import Bootstrap, Interval
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT

FOLDER = "interventions"
"""Group of the arrays."""
RECORDS = "edits"
"""Folder of what is written beside them; no file lies among arrays, where Zarr would warn."""


class EffectRecord(BaseModel):
    """What an edit did, by metric, over samples and targets.

    Attributes:
        mean: the labeler's map of the image against the target.
        less_unedited: the same less the unedited image's, paired.
        improved: share of pairs that are better than unedited.
        outside: mean absolute change of pixels, 0..1, off the object and its target.
        kept: share of images whose class stays; None where no class is labeled.
    """

    mean: Interval
    less_unedited: Interval
    improved: float
    outside: Interval
    kept: float | None


class InterventionSummary(BaseModel):
    """The record ``summary.json`` of an intervention."""

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


def edit_conditions(what: Intervention) -> tuple[str, ...]:
    """Names of the edits that an intervention makes: the edit itself, then its controls."""
    return EDIT_CONDITIONS if what.controls else EDIT_CONDITIONS[:1]


def read_intervention(run: Run, name: str) -> Intervention:
    """What an intervention of this name is.

    Raises:
        UserError: there is none.
    """
    file = f"{RECORDS}/{name}/intervention.json"
    return run.location.read_record(file, Intervention, "put back a copy of it, or remove it")


def summarise_intervention(run: Run, name: str, seconds: float) -> InterventionSummary:
    """Condense an intervention and write its ``summary.json``.

    Raises:
        RuntimeError: it is not finished.
    """
    group = f"{FOLDER}/{name}"
    if not run.progress_of(group).completed(EDIT).all():
        raise RuntimeError(f"{run.url}: {name} is not finished")
    data = run.open(group, require_complete=True)
    study, what = run.study, read_intervention(run, name)
    plan = plan_intervention(run, what)
    prompts = [run.samples[i].prompt for i in plan.samples]
    groups = np.array(prompts * len(what.targets))  # (target, sample), as the arrays are read
    bootstrap = Bootstrap(groups, study.bootstrap.resamples, study.bootstrap.level, seed=0)
    unedited = data.unedited.values[0].ravel().astype(float)
    effects = {}
    undefined = 0
    for i, condition in enumerate(edit_conditions(what)):
        score = data.score.values[i, 0].ravel().astype(float)
        gap = score - unedited
        defined = np.isfinite(gap)
        undefined += int((~defined).sum())
        kept = data.kept.values[i].ravel()
        effects[condition] = EffectRecord(
            mean=bootstrap.interval(np.where(defined, score, np.nan)),
            less_unedited=bootstrap.interval(gap),
            improved=float((gap[defined] > 0).mean()) if defined.any() else 0.0,
            outside=bootstrap.interval(data.outside.values[i].ravel().astype(float)),
            kept=float(kept.mean()) if np.isfinite(kept).all() else None,
        )
    findings = InterventionSummary(
        intervention=what, steps=plan.steps, layers=plan.layers, kind=plan.kind,
        metric=what.defaults.metrics[0], pairs=len(groups), undefined=undefined,
        unedited=bootstrap.interval(unedited), effects=effects, seconds=round(seconds, 1),
    )  # fmt: skip
    run.location.write_text(
        f"{RECORDS}/{name}/summary.json", findings.model_dump_json(indent=2) + "\n"
    )
    return findings


def has_intervention_summary(run: Run, name: str) -> bool:
    """The intervention is finished."""
    return run.location.has(f"{RECORDS}/{name}/summary.json")


def read_intervention_summary(run: Run, name: str) -> InterventionSummary:
    """What a finished intervention found.

    Raises:
        UserError: it is not finished.
    """
    remedy = "remove it, and repeat `ldmprobe intervene` with the same options"
    file = f"{RECORDS}/{name}/summary.json"
    return run.location.read_record(file, InterventionSummary, remedy)


def completed_interventions(run: Run) -> list[str]:
    """Names of the run's interventions that have findings."""
    return [name for name in run.location.folders(RECORDS) if has_intervention_summary(run, name)]
