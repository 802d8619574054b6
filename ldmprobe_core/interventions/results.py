"""JSON records of an intervention in a run: its settings and the summary of its effects."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel

from ldmprobe_core.errors import RunError
from ldmprobe_core.interventions.plan import InterventionPlan, Site, plan_intervention
from ldmprobe_core.interventions.spec import EDITED, Intervention
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT
from ldmprobe_core.study.conditions import PROBE_CONDITION

INTERVENTIONS_GROUP = "interventions"
"""Zarr group that contains the arrays of all interventions."""
RECORDS = "edits"
"""Folder of the JSON records; separate from the arrays, as Zarr warns of foreign files."""


class EffectRecord(BaseModel):
    """Effect of the edit, or of one null edit, over all pairs of sample and target.

    Attributes:
        mean: mean score against the target, in the property's headline metric, of the labeler's map
            of the edited image.
        less_unedited: mean difference between this score and the score of the unedited image.
        edit_less_this: mean paired difference between the score of the edit proper and this score;
            None for the edit proper.
        improved: fraction of pairs in which the edited image scores higher than the unedited one.
        halfway: fraction of pairs in which the mask's centroid moved more than half of the way to
            the target's; None for other properties and where no pair defines it.
        measures: mean of each measure (`ldmprobe_core.interventions.scores.measures_of`).
        outside: mean absolute change of pixel values, 0..1, outside the object and its target.
        kept: fraction of images whose top class is unchanged; None if the run has no class labels.
    """

    mean: Interval
    less_unedited: Interval
    edit_less_this: Interval | None
    improved: float
    halfway: float | None
    measures: dict[str, Interval]
    outside: Interval
    kept: float | None


class SiteRecord(BaseModel):
    """Effects of an intervention at one site and one dose.

    Attributes:
        layers: names of the edited layers; ``latents`` stands for the denoiser's input.
        first, last: first and last edited step, from 1.
        dose: amplitude of the target in standard deviations of the prediction; None for a target in
            its own units.
        reading: root mean square change of the prediction in an edited cell, in the same standard
            deviations; its mean over cells, samples and targets; None for donors.
        effects: effects of the edit and of each null edit, by name of the condition.
        decodable: what can be decoded at this site in the unedited run: score of the stored probes,
            in the headline metric, averaged over the steps of the window and over the test samples;
            None for sites of several layers.
    """

    layers: list[str]
    first: int
    last: int
    dose: float | None
    reading: float | None
    effects: dict[str, EffectRecord]
    decodable: Interval | None


class InterventionSummary(BaseModel):
    """Contents of an intervention's ``summary.json``.

    Attributes:
        intervention: settings of the intervention.
        kind: kind of the probes that give the edit directions.
        metric: headline metric, in which the scores are given.
        pairs: number of pairs of sample and target.
        undefined: number of headline scores that are undefined, over all pairs, sites, doses and
            conditions.
        unedited: score of the unedited images against the targets.
        sites: effects by site and dose; a causal map has one entry for each layer and window.
        seconds: wall time of the intervention.
    """

    intervention: Intervention
    kind: str
    metric: str
    pairs: int
    undefined: int
    unedited: Interval
    sites: list[SiteRecord]
    seconds: float

    @property
    def effects(self) -> dict[str, EffectRecord]:
        """Effects at the first site and dose, which is the only one unless there are several."""
        return self.sites[0].effects


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
    pairs = [run.samples[i] for i in plan.samples] * len(spec.target_names)
    bootstrap = Bootstrap.of_samples(pairs, run.study.bootstrap, seed=0)
    scores = data.score.values[:, 0]
    summary = InterventionSummary(
        intervention=spec,
        kind=plan.kind,
        metric=spec.defaults.metrics[0],
        pairs=len(pairs),
        undefined=int((~np.isfinite(scores - data.unedited.values[0])).sum()),
        unedited=bootstrap.interval(data.unedited.values[0].ravel().astype(float)),
        sites=[
            _site_record(run, plan, spec, data.isel(site=i, dose=k), bootstrap)
            for i in range(len(plan.sites))
            for k in range(len(spec.dose_axis))
        ],
        seconds=round(seconds, 1),
    )
    run.location.write_text(
        f"{RECORDS}/{name}/summary.json", summary.model_dump_json(indent=2) + "\n"
    )
    return summary


def _site_record(
    run: Run,
    plan: InterventionPlan,
    spec: Intervention,
    data: Any,
    bootstrap: Bootstrap,
) -> SiteRecord:
    """Summarise the effects at one site and dose.

    Args:
        run: run that contains the intervention.
        plan: checked intervention.
        spec: settings of the intervention.
        data: dataset of the intervention at the site and dose, with the axes (condition, target,
            sample).
        bootstrap: bootstrap over the pairs of target and sample.
    """
    names = [str(name) for name in data.measure.values]
    unedited = data.unedited.values[0].ravel().astype(float)
    scores = {
        condition: data.score.values[i].reshape(len(names), -1).astype(float)
        for i, condition in enumerate(spec.conditions)
    }
    effects = {}
    for i, (condition, measured) in enumerate(scores.items()):
        gap = measured[0] - unedited
        defined = np.isfinite(gap)
        same_class = data.kept.values[i].ravel()
        way = measured[names.index("way")] if "way" in names else np.empty(0)
        way = way[np.isfinite(way)]
        effects[condition] = EffectRecord(
            mean=bootstrap.interval(np.where(defined, measured[0], np.nan)),
            less_unedited=bootstrap.interval(gap),
            edit_less_this=(
                None if condition == EDITED else bootstrap.interval(scores[EDITED][0] - measured[0])
            ),
            improved=float((gap[defined] > 0).mean()) if defined.any() else 0.0,
            halfway=float((way > 0.5).mean()) if len(way) else None,
            measures={
                name: bootstrap.interval(row) for name, row in zip(names, measured, strict=True)
            },
            outside=bootstrap.interval(data.outside.values[i].ravel().astype(float)),
            kept=float(same_class.mean()) if np.isfinite(same_class).all() else None,
        )
    site = plan.sites[[str(site) for site in plan.sites].index(str(data.site.values))]
    dose, reading = float(data.dose), float(np.mean(data.reading.values[0]))
    return SiteRecord(
        layers=list(site.layers),
        first=site.first,
        last=site.last,
        dose=dose if np.isfinite(dose) else None,
        reading=reading if np.isfinite(reading) else None,
        effects=effects,
        decodable=_decodable(run, spec, plan.kind, site) if len(site.layers) == 1 else None,
    )


def _decodable(run: Run, spec: Intervention, kind: str, site: Site) -> Interval:
    """Score the stored probes of a site's layer, on average over the window's steps.

    The score is that of the run's test samples in the headline metric.
    """
    scores = run.open(f"scores/{spec.prop}", require_complete=True).score.sel(
        condition=PROBE_CONDITION, kind=kind, metric=spec.defaults.metrics[0], layer=site.layers[0]
    )
    steps = scores.isel(step=slice(site.first - 1, site.last)).load()
    test = [i for i in map(int, steps.sample.values) if run.samples[i].split == "test"]
    values = steps.sel(sample=test).mean("step", skipna=False).values.astype(float)
    members = [run.samples[i] for i in test]
    return Bootstrap.of_samples(members, run.study.bootstrap, seed=0).interval(values)


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
