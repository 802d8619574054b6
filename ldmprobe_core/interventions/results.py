"""JSON records of an intervention in a run: its settings and the summary of its effects."""

from __future__ import annotations

from pydantic import BaseModel

from ldmprobe_core.errors import LdmprobeError, RunError, UserError
from ldmprobe_core.interventions.records import DoseEffect, InterventionRecord, MapCell
from ldmprobe_core.interventions.spec import EDITED, Intervention
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT, EDIT_RECORDS

INTERVENTIONS_GROUP = "interventions"
"""Zarr group that contains the arrays of all interventions."""


class ProbeReading(BaseModel):
    """Score of one layer's probes of one kind, on activations during an erasure.

    Attributes:
        layer: name of the layer whose activations are read, after their edit if it is edited.
        kind: kind of the probes.
        score: score of their predictions against the sample's own label, in the property's headline
            metric; the mean over the edited steps.
        less_unedited: difference between this score and that of the same probes in the run.
    """

    layer: str
    kind: str
    score: Interval
    less_unedited: Interval


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
        kept: fraction of images, of those with one top class, that keep it; None if the run has
            no class labels.
        size: root mean square norm of the change in an edited cell, in norms of the least edit that
            changes the prediction by one standard deviation; its mean over cells, samples and
            targets; None for donors.  Null edits but ``own_label`` have that of the edit.
        directions: number of directions of a null edit in each cell, which samples take in turn;
            for ``permuted`` that of the permutations of the labels.  None for the edit, for
            ``own_label``, and for interventions of early versions.
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
    directions: int | None = None
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
        """Effect of the edit: mean paired difference, score of the edit minus that of a null edit.

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
                "read sites[i].effects, whose sites[i].layers, first, last and dose tell them apart"
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
        RunError: the record is missing or damaged, or belongs to another intervention.
    """
    file = _settings_file(name)
    remedy = f"put back a copy of it, or {_way_back(run, name)}"
    if not run.location.has(file) and _is_started(run, name):
        raise RunError(f"{run.url}: {file} is missing. Fix: {remedy}")
    spec = run.location.read_record(file, Intervention, remedy)
    # The name contains the hash of the settings, so a different name shows that the file is another
    # intervention's.
    if spec.name != name:
        raise RunError(
            f"{run.url}: {file} holds the settings of another intervention ({spec.name}). Fix: "
            f"{remedy}"
        )
    return spec


def _way_back(run: Run, name: str) -> str:
    """Advise what to do about the settings of an intervention, if there is no copy of them."""
    if _settings_in_summary(run, name) is None:
        return (
            f"remove {EDIT_RECORDS}/{name} and {INTERVENTIONS_GROUP}/{name}, and repeat `ldmprobe "
            "intervene`"
        )
    return f"run `ldmprobe verify {run.url} --redo`, which takes it from the summary beside it"


def _settings_in_summary(run: Run, name: str) -> Intervention | None:
    """Read the settings of an intervention from its summary; None if that has not got them."""
    try:
        spec = read_intervention_summary(run, name).intervention
    except LdmprobeError:
        return None
    return spec if spec.name == name else None


def restore_intervention(run: Run, name: str) -> bool:
    """Write damaged settings of an intervention again, from its summary; return whether it did."""
    try:
        read_intervention(run, name)
    except LdmprobeError:
        spec = _settings_in_summary(run, name)
        if spec is not None:
            write_intervention(run, spec)
        return spec is not None
    return False


def write_intervention(run: Run, spec: Intervention) -> None:
    """Write the settings of an intervention, which mark its creation as complete."""
    run.location.write_text(_settings_file(spec.name), spec.model_dump_json(indent=2))


def has_intervention_summary(run: Run, name: str) -> bool:
    """Return True if a run's intervention is finished, that is, has a ``summary.json``."""
    return run.location.has(f"{EDIT_RECORDS}/{name}/summary.json")


def read_intervention_summary(run: Run, name: str) -> InterventionSummary:
    """Read the summary of a finished intervention.

    Raises:
        UserError: the intervention has no summary yet.
        RunError: the summary is damaged.
    """
    remedy = "remove it, and repeat `ldmprobe intervene` with the same options"
    file = f"{EDIT_RECORDS}/{name}/summary.json"
    return run.location.read_record(file, InterventionSummary, remedy)


def completed_interventions(run: Run) -> list[str]:
    """Return the names of the run's interventions that have a summary."""
    return [
        name for name in run.location.folders(EDIT_RECORDS) if has_intervention_summary(run, name)
    ]


def started_interventions(run: Run) -> list[str]:
    """Return the names of the run's interventions that have a record or a complete unit."""
    folders = (run.location.folders(top) for top in (EDIT_RECORDS, INTERVENTIONS_GROUP))
    return [name for name in sorted(set().union(*folders)) if _is_started(run, name)]


def _is_started(run: Run, name: str) -> bool:
    """Return whether an intervention has a record or a complete unit."""
    if run.location.has(_settings_file(name)) or has_intervention_summary(run, name):
        return True
    try:
        return bool(run.progress_of(f"{INTERVENTIONS_GROUP}/{name}").completed(EDIT).any())
    except RunError:
        # The creation of the group is unfinished, or its progress record is damaged.
        return False


def _settings_file(name: str) -> str:
    """Return the path, in a run, of the settings of an intervention."""
    return f"{EDIT_RECORDS}/{name}/intervention.json"
