"""JSON records of an intervention in a run: its settings and the summary of its effects."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.interventions.measures.decodable import score_at_site, stored_scores
from ldmprobe_core.interventions.measures.readings import ProbeReading, probe_readings
from ldmprobe_core.interventions.plan import InterventionPlan, Site, plan_intervention
from ldmprobe_core.interventions.records import DoseEffect, InterventionRecord, MapCell
from ldmprobe_core.interventions.spec import EDITED, Intervention
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT

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
        improved: fraction of pairs in which the edited image scores higher than the unedited one;
            None where no pair defines it.
        halfway: fraction of pairs in which the mask's centroid moved more than half of the way to
            the target's, of the pairs whose label and target have different centroids.  A mask that
            vanished moved nowhere, so its pair counts in the denominator alone.  None for other
            properties and where no pair defines it.
        vanished: fraction of pairs whose edited image has an empty mask, of the pairs with a label
            that is not empty; None for other properties.
        measures: mean of each measure (`ldmprobe_core.interventions.measures.scores.measures_of`).
        outside: mean absolute change of pixel values, 0..1, outside the object and its target.
        kept: fraction of images whose top class is unchanged; None if the run has no class labels.
        size: root mean square norm of the change in an edited cell, in norms of the least edit that
            changes the prediction by one standard deviation; its mean over cells, samples and
            targets; None for donors.  Null edits but ``own_label`` have that of the edit.
        readings: for an erasure or its null edits, what the run's probes of each layer and kind
            read in the generation of the edited images; empty for other methods.
    """

    mean: Interval
    less_unedited: Interval
    edit_less_this: Interval | None
    improved: float | None
    halfway: float | None
    vanished: float | None = None
    measures: dict[str, Interval]
    outside: Interval
    kept: float | None
    size: float | None = None
    readings: list[ProbeReading] = []


class SiteRecord(BaseModel):
    """Effects of the edit and its null edits at one site (layers and steps) with one dose.

    Attributes:
        layers: names of the edited layers; ``latents`` stands for the denoiser's input.
        first, last: first and last edited step, from 1.
        dose: amplitude of the target in standard deviations of the prediction; None for a target in
            its own units.
        reading: root mean square change of the prediction in an edited cell, in the same standard
            deviations; its mean over cells, samples and targets; None for donors.
        effects: effects of the edit and of each null edit, by name of the condition.
        decodable: what can be decoded at this site in the unedited run: score of the probes of the
            layer's single tokens, in the headline metric, averaged over the steps of the window and
            over all test samples; None for sites of several layers.  For ``latents``, these are not
            the stored probes, which read 5 x 5 latents, but the probes of single latents that edits
            use.
    """

    layers: list[str]
    first: int
    last: int
    dose: float | None
    reading: float | None
    effects: dict[str, EffectRecord]
    decodable: Interval | None

    @property
    def used(self) -> Interval:
        """Effect of the edit: its score less that of the null edit, paired by sample and target.

        The null edit is the one orthogonal to what probes read.  An intervention without it is
        compared with the unedited images.
        """
        null = self.effects.get("orthogonal")
        if null is None or null.edit_less_this is None:
            return self.effects[EDITED].less_unedited
        return null.edit_less_this


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
        """Effects of an intervention that has one site and one dose.

        Raises:
            UserError: there are several sites or doses.
        """
        if len(self.sites) > 1:
            raise UserError(
                f"effects: the intervention has several sites or doses ({len(self.sites)}). Fix: "
                "read the effects of one of its sites."
            )
        return self.sites[0].effects


def main_results(summary: InterventionSummary) -> InterventionRecord:
    """Take the main results from the summary of an intervention."""
    spec, sites = summary.intervention, summary.sites
    only = sites[0] if len(sites) == 1 else None
    return InterventionRecord(
        prop=spec.prop,
        method=spec.method,
        metric=summary.metric,
        pairs=summary.pairs,
        unedited=summary.unedited,
        edited=None if only is None else only.effects[EDITED].mean,
        used=None if only is None else only.used,
        doses=[
            DoseEffect(dose=site.dose, edited=site.effects[EDITED].mean, used=site.used)
            for site in sites
            if len(sites) > 1 and not spec.windows and site.dose is not None
        ],
        map=[
            MapCell(
                layer=site.layers[0], first=site.first, last=site.last, dose=site.dose,
                decodable=site.decodable, used=site.used,
            )
            for site in (sites if spec.windows else [])
        ],
    )  # fmt: skip


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
    # The scores are flattened over the axes (target, sample), so the list of samples is repeated
    # once for each target.
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
    """Summarise the effects of edits at one site (layers and steps) with one dose.

    Args:
        run: run that contains the intervention.
        plan: checked intervention.
        spec: settings of the intervention.
        data: dataset of the intervention at the site and dose, with the axes (condition, target,
            sample).
        bootstrap: bootstrap over the pairs of target and sample.
    """
    n_measures = data.sizes["measure"]
    before = data.unedited.values.reshape(n_measures, -1).astype(float)
    edited = data.score.values[0].reshape(n_measures, -1).astype(float)
    site = plan.sites[[str(site) for site in plan.sites].index(str(data.site.values))]
    effects = {
        condition: _effect_record(data.isel(condition=i), condition, before, edited, bootstrap)
        for i, condition in enumerate(spec.conditions)
    }
    if "probe_score" in data:
        effects = {
            condition: effect.model_copy(
                update={
                    "readings": _readings(run, plan, spec, site, data.isel(condition=i), bootstrap)
                }
            )
            for i, (condition, effect) in enumerate(effects.items())
        }
    dose, reading = float(data.dose), float(np.mean(data.reading.values[0]))
    return SiteRecord(
        layers=list(site.layers),
        first=site.first,
        last=site.last,
        dose=dose if np.isfinite(dose) else None,
        reading=reading if np.isfinite(reading) else None,
        effects=effects,
        decodable=score_at_site(run, spec, plan.kind, site) if len(site.layers) == 1 else None,
    )


def _effect_record(
    data: Any, condition: str, before: np.ndarray, edited: np.ndarray, bootstrap: Bootstrap
) -> EffectRecord:
    """Summarise the effect of the edit or of one null edit.

    Args:
        data: dataset of the condition at a site and dose, with the axes (target, sample).
        condition: name of the condition.
        before: measures of the unedited images, (measure, pair of target and sample) float64.
        edited: measures of the images of the edit proper, likewise.
        bootstrap: bootstrap over the pairs.
    """
    names = [str(name) for name in data.measure.values]
    measured = data.score.values.reshape(len(names), -1).astype(float)
    gap = measured[0] - before[0]
    defined = np.isfinite(gap)
    same_class = data.kept.values.ravel()
    size = float(np.mean(data["size"].values)) if "size" in data else float("nan")
    halfway = vanished = None
    if "way" in names:
        way, area = names.index("way"), names.index("area")
        # Take from the unedited images where ``way`` is defined: in an edited image it is also NaN
        # if the object vanished, which counts as not halfway.
        halfway = _fraction(measured[way] > 0.5, np.isfinite(before[way]))
        vanished = _fraction(measured[area] == 0, np.isfinite(measured[area]))
    return EffectRecord(
        mean=bootstrap.interval(np.where(defined, measured[0], np.nan)),
        less_unedited=bootstrap.interval(gap),
        edit_less_this=(
            None if condition == EDITED else bootstrap.interval(edited[0] - measured[0])
        ),
        improved=_fraction(gap > 0, defined),
        halfway=halfway,
        vanished=vanished,
        measures={name: bootstrap.interval(row) for name, row in zip(names, measured, strict=True)},
        outside=bootstrap.interval(data.outside.values.ravel().astype(float)),
        kept=float(same_class.mean()) if np.isfinite(same_class).all() else None,
        size=size if np.isfinite(size) else None,
    )


def _readings(
    run: Run,
    plan: InterventionPlan,
    spec: Intervention,
    site: Site,
    data: Any,
    bootstrap: Bootstrap,
) -> list[ProbeReading]:
    """Summarise scores of the run's probes during an erasure or one of its null edits."""

    def unedited(layer: str, kind: str) -> np.ndarray:
        steps = range(site.first, site.last + 1)
        by_sample = stored_scores(run, spec, kind, layer, steps)
        return np.array([by_sample[sample] for sample in plan.samples])

    # An erasure has one target: the sample's own label.
    scores = data.probe_score.isel(target=0).transpose("layer", "kind", "sample").values
    layers, kinds = ([str(name) for name in data[axis].values] for axis in ("layer", "kind"))
    return probe_readings(scores, layers, kinds, unedited, bootstrap)


def _fraction(true: np.ndarray, defined: np.ndarray) -> float | None:
    """Return the fraction of defined entries that are true; None if none is defined."""
    return float(true[defined].mean()) if defined.any() else None


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
