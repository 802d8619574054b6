"""Summary of a finished intervention: effects of the edit and of its null edits."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from ldmprobe_core.errors import RunError
from ldmprobe_core.interventions.directions import permutations
from ldmprobe_core.interventions.measures.decodable import score_at_site, stored_scores
from ldmprobe_core.interventions.measures.readings import probe_readings
from ldmprobe_core.interventions.null_directions import DIRECTIONS, NULLS
from ldmprobe_core.interventions.plan import InterventionPlan, Site, plan_intervention
from ldmprobe_core.interventions.results import (
    INTERVENTIONS_GROUP,
    EffectRecord,
    InterventionSummary,
    ProbeReading,
    SiteRecord,
    has_intervention_summary,
    read_intervention,
    read_intervention_summary,
)
from ldmprobe_core.interventions.spec import EDITED, Intervention
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT, EDIT_RECORDS


def summarise_intervention(run: Run, name: str, seconds: float) -> InterventionSummary:
    """Summarise a finished intervention and write its ``summary.json``.

    Args:
        run: run that contains the intervention.
        name: name of the intervention.
        seconds: wall time of the intervention, which the summary reports.  If there is a summary
            already, its time stays, because repeating the intervention edits nothing.

    Raises:
        RuntimeError: some batches of the intervention are not finished.
    """
    group = f"{INTERVENTIONS_GROUP}/{name}"
    if not run.progress_of(group).completed(EDIT).all():
        raise RuntimeError(
            f"intervention: {name} of {run.url} is not finished. Fix: run its remaining edits."
        )
    if has_intervention_summary(run, name):
        with suppress(RunError):  # a damaged summary is written again
            seconds = read_intervention_summary(run, name).seconds
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
        f"{EDIT_RECORDS}/{name}/summary.json", summary.model_dump_json(indent=2) + "\n"
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
        condition: _effect_record(
            data.isel(condition=i), condition, before, edited, bootstrap
        ).model_copy(
            update={"directions": directions_used(run, plan.kind, condition, data.sample.values)}
        )
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


def directions_used(run: Run, kind: str, condition: str, samples: np.ndarray) -> int | None:
    """Count the directions of a null edit in each cell; None if it has no own ones.

    Each sample has one of them, by its index (`edit.null_change`), so few samples use a part.

    Args:
        run: run that contains the intervention.
        kind: kind of the edited probes.
        condition: name of the edit or null edit.
        samples: indices of the edited samples.
    """
    if condition == EDITED or NULLS[condition].directions is None:
        return None
    directions = permutations(run, kind) if condition == "permuted" else DIRECTIONS
    return len(np.unique(samples % directions))


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
    same_class = data.kept.values[np.isfinite(data.kept.values)]
    size = float(np.mean(data["size"].values)) if "size" in data else float("nan")
    halfway = vanished = None
    if "way" in names:
        way, area = names.index("way"), names.index("area")
        # ``way`` is the fraction of the distance to the target that a mask's centroid has moved.
        # Count only pairs whose unedited image has a defined ``way``.  If the object vanished in
        # the edited image, ``way`` of that image is NaN, and the pair counts as not halfway.
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
        kept=float(same_class.mean()) if len(same_class) else None,
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
