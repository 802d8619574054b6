"""Stages of an intervention on a run: creating its arrays, and editing one batch of samples.

The results are arrays in the run's store, under ``interventions/<name>``.  A batch is marked as
done after its data is written, so an interrupted intervention resumes when the calls are repeated.
"""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import numpy as np
import zarr

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.interventions.batches import InterventionBatch
from ldmprobe_core.interventions.directions import probe_kinds_of
from ldmprobe_core.interventions.measures.scores import measures_of, score_edited_maps
from ldmprobe_core.interventions.plan import (
    InterventionPlan,
    available_samples,
    plan_intervention,
    read_layers,
    require_varying_predictions,
)
from ldmprobe_core.interventions.results import (
    INTERVENTIONS_GROUP,
    read_intervention,
    write_intervention,
)
from ldmprobe_core.interventions.spec import DONOR, ERASURES, Intervention
from ldmprobe_core.interventions.targets import require_aim, resolve_target, target_maps
from ldmprobe_core.labelers.registry import labelers_of
from ldmprobe_core.pipeline.labels import as_label, label_set
from ldmprobe_core.pipeline.prepare import check_fingerprints
from ldmprobe_core.pipeline.units import Unit, UnitOperations, register_units
from ldmprobe_core.storage.bookkeeping import write_identity
from ldmprobe_core.storage.group_builder import GroupBuilder
from ldmprobe_core.storage.nodes import open_group
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT, EDIT_RECORDS
from ldmprobe_core.study.properties import property_of

_UNIT_AXES = {"score": (2, 3, 4), "probe_score": (3, 4, 5)}
"""Positions of the axes site, dose and target in arrays whose first axes are not (condition,)."""


def create_intervention(run: Run, spec: Intervention) -> str:
    """Check an intervention and create its arrays unless they exist.

    Returns:
        the intervention's name, `Intervention.name`.

    Raises:
        UserError: the run lacks probes, samples or layers that the intervention needs, a probe
            predicts the same for every token, or the model or a labeler has other weights than when
            the run was created.
    """
    study = run.study
    spec = spec.model_copy(
        update={"targets": tuple(resolve_target(target) for target in spec.targets)}
    )
    if spec.chosen is None and "samples" not in spec.model_fields_set:
        # The default is for large runs; a small one may have fewer samples.
        fewer = max(1, min(spec.samples, len(available_samples(run, spec))))
        spec = spec.model_copy(update={"samples": fewer})
    plan = plan_intervention(run, spec)
    require_varying_predictions(run, spec, plan)
    check_fingerprints(run, study)
    write_identity(run.location)
    if spec.prop not in labelers_of(study):
        raise UserError(
            f"labels.{spec.prop}: the run takes its maps from files and has no labeler, which an "
            "edited image needs. Fix: name a labeler in the study, and make a new run."
        )
    labels, targets = _labels_and_targets(run, spec, plan)
    with run.creation_lock():
        if run.location.has(f"{EDIT_RECORDS}/{spec.name}/intervention.json"):
            return spec.name
        _create_arrays(run, spec, plan, labels, targets)
        # Update the consolidated metadata, because Zarr readers that use it see only the groups
        # that it lists.
        run.consolidate()
        write_intervention(run, spec)
    return spec.name


def _labels_and_targets(
    run: Run, spec: Intervention, plan: InterventionPlan
) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples' labels (sample, y, x), and their target maps (target, sample, y, x)."""

    def labels_of(samples: list[int]) -> np.ndarray:
        # A donor may serve several samples, but a run is read at distinct, increasing indices.
        distinct = sorted(set(samples))
        values = run.read("labels", spec.prop, sample=distinct)
        rows = [distinct.index(sample) for sample in samples]
        return as_label(run.study, spec.prop, values[rows])

    labels = labels_of(plan.samples)
    if spec.method in ERASURES:
        return labels, labels[None]
    if spec.method == DONOR:
        return labels, labels_of(plan.donors)[None]
    targets = target_maps(labels, spec.targets)
    for target, maps in zip(spec.targets, targets, strict=True):
        require_aim(target, labels, maps)
    return labels, targets


def _create_arrays(
    run: Run, spec: Intervention, plan: InterventionPlan, labels: np.ndarray, targets: np.ndarray
) -> None:
    """Create the arrays of an intervention; write its targets and scores of unedited images.

    Args:
        run: run that gets the arrays.
        spec: settings of the intervention.
        plan: checked intervention.
        labels: label maps of the unedited images, (sample, y, x).
        targets: target maps, (target, sample, y, x).
    """
    path = f"{INTERVENTIONS_GROUP}/{spec.name}"
    root = open_group(run.store, run.url, mode="r+")
    # The caller found no ``intervention.json``, so a group of this name remains from an
    # interrupted attempt to create the intervention.  Replace the group.
    if path in root:
        _require_no_results(run, path)
        del root[path]
    arrays = GroupBuilder(root)
    group = arrays.group(path, f"{spec.prop} edited, method {spec.method}")
    sizes = run.open("images").sizes
    length = _create_axes(arrays, group, run, spec, plan)
    batch = min(run.study.sampling.batch, length["sample"])
    chunk = {"site": 1, "dose": 1, "target": 1, "sample": batch}

    def add(name: str, dims: str, dtype: str, text: str, units: str = "1") -> None:
        axis = {dim: length[dim] if dim in length else sizes[dim] for dim in dims.split()}
        arrays.array(group, name, axis, chunk, dtype, text, units)

    each = "condition site dose target sample"
    add("image", f"{each} y x rgb", "uint8", "image", "0..255")
    add("label", f"{each} y x", "float32", f"labeler's {spec.prop}")
    add("score", f"condition measure {each.partition(' ')[2]}", "float32", "measures of the map")
    if spec.method in ERASURES:
        axes = f"condition layer kind {each.partition(' ')[2]}"
        add("probe_score", axes, "float32", "scores of the run's probes with the own label")
    add("outside", each, "float32", "change off the object and its target")
    add("kept", each, "float32", "1 where the class stays")
    add("reading", each, "float32", "root mean square change of the prediction, in deviations")
    add("size", each, "float32", "the same of an exact edit of equal norm")
    add("target_map", "target sample y x", "float32", "map aimed at")
    add("unedited", "measure target sample", "float32", "measures of the unedited image's map")
    units = {"site": length["site"], "dose": length["dose"], "target": length["target"],
             "batch": -(-length["sample"] // batch)}  # fmt: skip
    one = dict.fromkeys(units, 1)
    arrays.array(group, EDIT.progress, units, one, EDIT.dtype, EDIT.description, compress=False)
    mean_map, prop = label_set(run).means[spec.prop], property_of(spec.prop)
    unedited = [score_edited_maps(prop, labels, labels, maps, mean_map) for maps in targets]
    run.write(path, {
        "target_map": targets.astype(np.float32),
        "unedited": np.stack(unedited, axis=1).astype(np.float32),
    })  # fmt: skip


def _create_axes(
    arrays: GroupBuilder, group: zarr.Group, run: Run, spec: Intervention, plan: InterventionPlan
) -> dict[str, int]:
    """Create the coordinates of an intervention's arrays, and return the length of each axis."""
    sites = plan.sites
    axes: dict[str, tuple[list[Any], str]] = {
        "condition": (list(spec.conditions), "the edit proper, and null edits"),
        "site": ([str(site) for site in sites], "layers and steps that are edited together"),
        "dose": (list(spec.dose_axis), "amplitude of the target; NaN in the target's own units"),
        "target": (list(spec.target_names), "what is aimed at"),
        "sample": (plan.samples, "index of the image"),
        "rgb": (["red", "green", "blue"], "colour channel"),
        "measure": (list(measures_of(spec.edited_property)), "agreement, and shift of the mask"),
    }
    if spec.method in ERASURES:
        axes["layer"] = (read_layers(run), "layer whose activations probes read")
        axes["kind"] = (probe_kinds_of(run, spec), "kind of these probes")
    for name, (values, text) in axes.items():
        arrays.coordinate(group, name, values, text)
    for name, steps, text in (
        ("first_step", [site.first for site in sites], "first edited step"),
        ("last_step", [site.last for site in sites], "last edited step"),
    ):
        arrays.coordinate(group, "site", steps, text, name=name)
    return {name: len(values) for name, (values, _) in axes.items()}


def _require_no_results(run: Run, group: str) -> None:
    """Refuse to overwrite the arrays of an intervention if they contain results.

    Args:
        run: run that contains the arrays.
        group: Zarr group of an intervention whose record is missing.

    Raises:
        UserError: a batch of the intervention is complete.
    """
    try:
        done = bool(run.progress_of(group).completed(EDIT).any())
    except RunError:
        # The progress array cannot be read, because the creation of the group was interrupted
        # before the array was written.  Therefore no batch is complete.
        done = False
    if done:
        name = group.rpartition("/")[2]
        raise UserError(
            f"{run.url}: {group} holds results, but {EDIT_RECORDS}/{name}/intervention.json is "
            "missing. Fix: restore that file from a copy, or move the group out of the run."
        )


def edit_units(run: Run, name: str) -> list[tuple[int, int, int, int]]:
    """List an intervention's units of work as indices (site, dose, target, batch)."""
    shape = run.progress_of(f"{INTERVENTIONS_GROUP}/{name}").counts(EDIT).shape
    sites, doses, targets, batches = map(range, shape)
    return list(product(sites, doses, targets, batches))


def edit_batch(
    url: str, name: str, site: int, dose: int, target: int, batch: int
) -> dict[str, Any]:
    """Edit one batch of samples towards one target, with all null edits, and score the images.

    Args:
        url: URL or path of the run.
        name: name of the intervention.
        site, dose, target, batch: indices of the unit of work.

    Returns:
        ``images``, the number of generated images (0 if the batch was done already), and
        ``seconds``, the wall time.
    """
    run = Run(url)
    group = f"{INTERVENTIONS_GROUP}/{name}"
    progress = run.progress_of(group)
    if progress.is_done(EDIT, site, dose, target, batch):
        return {"images": 0, "seconds": 0.0}
    started = time.monotonic()
    spec = read_intervention(run, name)
    plan = plan_intervention(run, spec)
    size = run.study.sampling.batch
    members = slice(batch * size, min((batch + 1) * size, len(plan.samples)))
    samples = plan.samples[members]
    targets = run.read(group, "target_map", target=target, sample=members)
    if property_of(spec.prop).is_mask:
        targets = targets > 0.5
    labels = as_label(run.study, spec.prop, run.read("labels", spec.prop, sample=samples))
    edit = InterventionBatch(run, spec, plan, samples, plan.donors[members], labels, targets)
    results = edit.edit_in_all_conditions(plan.sites[site], spec.dose_axis[dose])
    run.write(
        group,
        {
            array: np.expand_dims(values, _UNIT_AXES.get(array, (1, 2, 3))).astype(
                np.uint8 if array == "image" else np.float32
            )
            for array, values in results.items()
        },
        site=slice(site, site + 1),
        dose=slice(dose, dose + 1),
        target=slice(target, target + 1),
        sample=members,
    )
    progress.mark_done(EDIT, site, dose, target, batch)
    images = len(samples) * len(results["image"])
    return {"images": images, "seconds": time.monotonic() - started}


register_units(
    UnitOperations(
        kind=EDIT,
        list_units=lambda run, name: [
            Unit(
                (name, *unit),
                f"edit {name} · site {unit[0]} · dose {unit[1]} · target {unit[2]} · "
                f"batch {unit[3]:03d}",
            )
            for unit in edit_units(run, name)
        ],
        carry_out=edit_batch,
        is_done=lambda run, name, *unit: run.progress_of(f"{INTERVENTIONS_GROUP}/{name}").is_done(
            EDIT, *unit
        ),
    )
)
