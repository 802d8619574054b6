"""Records of an intervention: its settings, effects and summary."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import METRICS, VARIANTS, Intervention
from ldmprobe_core.probing.bootstrap import Bootstrap, Interval
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.sample_table import samples_of

FOLDER = "interventions"
"""Group of the arrays."""
RECORDS = "edits"
"""Folder of what is written beside them; no file lies among arrays, where Zarr would warn."""


class Effect(BaseModel):
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


class Findings(BaseModel):
    """The record ``findings.json`` of an intervention."""

    intervention: Intervention
    steps: int
    layers: list[str]
    kind: str
    metric: str
    pairs: int
    undefined: int
    unedited: Interval
    effects: dict[str, Effect]
    seconds: float


def _variants(what: Intervention) -> tuple[str, ...]:
    return VARIANTS if what.controls else VARIANTS[:1]


def read_intervention(run: Run, name: str) -> Intervention:
    """What an intervention of this name is.

    Raises:
        UserError: there is none.
    """
    return Intervention.model_validate_json(run.read_text(f"{RECORDS}/{name}/intervention.json"))


def summarise_intervention(run: Run, name: str, seconds: float) -> Findings:
    """Condense an intervention and write its ``findings.json``.

    Raises:
        RuntimeError: it is not finished.
    """
    group = f"{FOLDER}/{name}"
    data = run.open(group)
    if not data["done"].values.all():
        raise RuntimeError(f"{run.url}: {name} is not finished")
    data = run.open(group, whole=True)
    study, what = run.study(), read_intervention(run, name)
    plan = plan_intervention(run, what)
    prompts = [samples_of(run)[i].prompt for i in plan.samples]
    groups = np.array(prompts * len(what.targets))  # (target, sample), as the arrays are read
    bootstrap = Bootstrap(groups, study.statistics.resamples, study.statistics.level, seed=0)
    unedited = data.unedited.values[0].ravel().astype(float)
    effects = {}
    undefined = 0
    for i, variant in enumerate(_variants(what)):
        score = data.score.values[i, 0].ravel().astype(float)
        gap = score - unedited
        defined = np.isfinite(gap)
        undefined += int((~defined).sum())
        kept = data.kept.values[i].ravel()
        effects[variant] = Effect(
            mean=bootstrap.interval(np.where(defined, score, np.nan)),
            less_unedited=bootstrap.interval(gap),
            improved=float((gap[defined] > 0).mean()) if defined.any() else 0.0,
            outside=bootstrap.interval(data.outside.values[i].ravel().astype(float)),
            kept=float(kept.mean()) if np.isfinite(kept).all() else None,
        )
    findings = Findings(
        intervention=what, steps=plan.steps, layers=plan.layers, kind=plan.kind,
        metric=METRICS[what.prop][0], pairs=len(groups), undefined=undefined,
        unedited=bootstrap.interval(unedited), effects=effects, seconds=round(seconds, 1),
    )  # fmt: skip
    run.write_text(f"{RECORDS}/{name}/findings.json", findings.model_dump_json(indent=2) + "\n")
    return findings


def has_findings(run: Run, name: str) -> bool:
    """The intervention is finished."""
    return run.has(f"{RECORDS}/{name}/findings.json")


def read_findings(run: Run, name: str) -> Findings:
    """What a finished intervention found.

    Raises:
        UserError: it is not finished.
    """
    return Findings.model_validate_json(run.read_text(f"{RECORDS}/{name}/findings.json"))


def finished_interventions(run: Run) -> list[str]:
    """Names of the run's interventions that have findings."""
    return [name for name in run.folders(RECORDS) if has_findings(run, name)]
