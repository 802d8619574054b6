"""Stages of an intervention on a run: creating its arrays, and editing one batch of samples.

The results are arrays in the run's store, under ``interventions/<name>``.  A batch is marked as
done after its data is written, so an interrupted intervention resumes when the calls are repeated.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.interventions.directions import directions_of
from ldmprobe_core.interventions.edit import EditDirection
from ldmprobe_core.interventions.editor import Editor, make_edit, sample_edited
from ldmprobe_core.interventions.plan import InterventionPlan, plan_intervention
from ldmprobe_core.interventions.results import (
    INTERVENTIONS_GROUP,
    RECORDS,
    edit_conditions,
    read_intervention,
)
from ldmprobe_core.interventions.scores import background_change, score_maps_against_targets
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.targets import resolve_target, target_maps
from ldmprobe_core.labelers.registry import labelers_of
from ldmprobe_core.pipeline.labels import as_label, label_set
from ldmprobe_core.pipeline.model_cache import use_models
from ldmprobe_core.pipeline.prepare import check_fingerprints
from ldmprobe_core.pipeline.units import Unit, UnitOperations, register_units
from ldmprobe_core.storage.group_builder import GroupBuilder
from ldmprobe_core.storage.nodes import open_group
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT
from ldmprobe_core.study.properties import property_of


def create_intervention(run: Run, spec: Intervention) -> str:
    """Check an intervention and create its arrays unless they exist.

    Returns:
        the intervention's name, `Intervention.name`.

    Raises:
        UserError: the run lacks probes, samples or layers that the intervention needs, or
            the model or a labeler has other weights than when the run was created.
    """
    study = run.study
    spec = spec.model_copy(
        update={"targets": tuple(resolve_target(target) for target in spec.targets)}
    )
    plan = plan_intervention(run, spec)
    check_fingerprints(run, study)
    if spec.prop not in labelers_of(study):
        raise UserError(
            f"labels.{spec.prop}: the run takes its maps from files and has no labeler, which an "
            "edited image needs. Fix: name a labeler in the study, and make a new run."
        )
    stored = run.read("labels", spec.prop, sample=plan.samples)
    targets = target_maps(as_label(study, spec.prop, stored), spec.targets)
    with run.creation_lock():
        if run.location.has(f"{RECORDS}/{spec.name}/intervention.json"):
            return spec.name
        _create_arrays(run, spec, plan, targets)
        # Update the consolidated metadata, because Zarr readers that use it see only the groups
        # that it lists.
        run.consolidate()
        run.location.write_text(
            f"{RECORDS}/{spec.name}/intervention.json", spec.model_dump_json(indent=2)
        )
    return spec.name


def _create_arrays(run: Run, spec: Intervention, plan: InterventionPlan, maps: np.ndarray) -> None:
    """Create the arrays of an intervention and write its target maps (target, sample, y, x)."""
    path = f"{INTERVENTIONS_GROUP}/{spec.name}"
    root = open_group(run.store, run.url, mode="r+")
    # The caller found no ``intervention.json``, so a group of this name remains from an
    # interrupted attempt to create the intervention.  Replace the group.
    if path in root:
        _require_no_results(run, path)
        del root[path]
    arrays = GroupBuilder(root)
    group = arrays.group(
        f"{INTERVENTIONS_GROUP}/{spec.name}", f"{spec.prop} edited, method {spec.method}"
    )
    sizes = run.open("images").sizes
    conditions = edit_conditions(spec)
    targets, n = len(spec.targets), len(plan.samples)
    batch = min(run.study.sampling.batch, n)
    arrays.coordinate(group, "condition", list(conditions), "the edit proper, and its controls")
    arrays.coordinate(group, "target", [str(t) for t in spec.targets], "what is aimed at")
    arrays.coordinate(group, "sample", plan.samples, "index of the image")
    arrays.coordinate(group, "rgb", ["red", "green", "blue"], "colour channel")
    arrays.coordinate(group, "metric", list(spec.defaults.metrics), "agreement with the target")
    pairs = {"target": targets, "sample": n}
    chunk = {"target": 1, "sample": batch}
    each = {"condition": len(conditions), **pairs}
    pixels = {"y": sizes["y"], "x": sizes["x"]}
    arrays.array(group, "image", {**each, **pixels, "rgb": 3}, chunk, "uint8", "image", "0..255")
    arrays.array(group, "label", {**each, **pixels}, chunk, "float32", f"labeler's {spec.prop}")
    arrays.array(group, "target_map", {**pairs, **pixels}, chunk, "float32", "map aimed at")
    scores = {"metric": len(spec.defaults.metrics), **pairs}
    text = "agreement with the target"
    arrays.array(group, "unedited", scores, chunk, "float32", f"{text}, of the unedited image")
    arrays.array(group, "score", {"condition": len(conditions), **scores}, chunk, "float32", text)
    arrays.array(group, "outside", each, chunk, "float32", "change off the object and its target")
    arrays.array(group, "kept", each, chunk, "float32", "1 where the class stays")
    units = {"target": targets, "batch": -(-n // batch)}
    one = dict.fromkeys(units, 1)
    arrays.array(group, EDIT.progress, units, one, EDIT.dtype, EDIT.description, compress=False)
    run.write(f"{INTERVENTIONS_GROUP}/{spec.name}", {"target_map": maps.astype(np.float32)})


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
        # The group has no readable progress array, because the attempt to create it was interrupted
        # first.  Therefore no batch is complete.
        done = False
    if done:
        name = group.rpartition("/")[2]
        raise UserError(
            f"{run.url}: {group} holds results, but {RECORDS}/{name}/intervention.json is missing. "
            "Fix: restore that file from a copy, or move the group out of the run."
        )


def edit_units(run: Run, name: str) -> list[tuple[int, int]]:
    """List an intervention's units of work as index pairs (target, batch)."""
    shape = run.progress_of(f"{INTERVENTIONS_GROUP}/{name}").counts(EDIT).shape
    return [(t, b) for t in range(shape[0]) for b in range(shape[1])]


def edit_batch(url: str, name: str, target: int, batch: int) -> dict[str, Any]:
    """Edit one batch of samples towards one target, with all controls, and score the images.

    Args:
        url: URL or path of the run.
        name: name of the intervention.
        target, batch: indices of the unit of work.

    Returns:
        ``images``, the number of generated images (0 if the batch was done already), and
        ``seconds``, the wall time.
    """
    run = Run(url)
    group = f"{INTERVENTIONS_GROUP}/{name}"
    progress = run.progress_of(group)
    if progress.is_done(EDIT, target, batch):
        return {"images": 0, "seconds": 0.0}
    started = time.monotonic()
    spec = read_intervention(run, name)
    plan = plan_intervention(run, spec)
    size = run.study.sampling.batch
    samples = plan.samples[batch * size : (batch + 1) * size]
    region = {
        "target": slice(target, target + 1),
        "sample": slice(batch * size, batch * size + len(samples)),
    }
    targets = run.read(group, "target_map", **region)[0]
    if property_of(spec.prop).is_mask:
        targets = targets > 0.5
    labels = as_label(run.study, spec.prop, run.read("labels", spec.prop, sample=samples))
    results = _edit_in_all_conditions(
        run, spec, plan, samples, labels, targets, seed=spec.seed + 1000 * target + batch
    )
    unedited = score_maps_against_targets(spec.defaults, labels, targets)
    target_axis = {"score": 2, "unedited": 1}
    results["unedited"] = unedited
    run.write(
        group,
        {
            array: np.expand_dims(values, target_axis.get(array, 1)).astype(
                np.uint8 if array == "image" else np.float32
            )
            for array, values in results.items()
        },
        **region,
    )
    progress.mark_done(EDIT, target, batch)
    images = len(samples) * len(results["image"])
    return {"images": images, "seconds": time.monotonic() - started}


def _edit_in_all_conditions(
    run: Run,
    spec: Intervention,
    plan: InterventionPlan,
    samples: list[int],
    labels: np.ndarray,
    targets: np.ndarray,
    seed: int,
) -> dict[str, np.ndarray]:
    """Generate the edited images of a batch in all conditions, label them and score them.

    Args:
        run: run that contains the intervention.
        spec: settings of the intervention.
        plan: checked intervention.
        samples: indices of the samples.
        labels, targets: label and target maps of the samples, (sample, y, x).
        seed: seed of the random edits.

    Returns:
        arrays by name: ``image`` (condition, sample, y, x, rgb),
        ``label`` (condition, sample, y, x), ``score`` (condition, metric, sample),
        ``outside`` and ``kept`` (condition, sample).
    """
    identity = run.location.read_text("identity")
    unedited = run.read("images", "image", sample=samples)
    results: dict[str, list[np.ndarray]] = {
        "image": [], "label": [], "score": [], "outside": [], "kept": [],
    }  # fmt: skip
    with use_models(run) as (sampler, labelers):
        for condition in edit_conditions(spec):
            directions = _directions(run.url, identity, spec, condition == "shuffled")
            generator = torch.Generator().manual_seed(seed) if condition == "random" else None
            change = make_edit(spec, plan.kind, targets, generator)
            editor = Editor(sampler, directions, change)
            edited = sample_edited(sampler, [run.samples[i] for i in samples], editor)
            maps = labelers[spec.prop](edited)
            scores = score_maps_against_targets(
                spec.defaults, as_label(run.study, spec.prop, maps), targets
            )
            results["image"].append(edited)
            results["label"].append(maps)
            results["score"].append(scores)
            results["outside"].append(_change_outside(unedited, edited, labels, targets))
            results["kept"].append(_class_unchanged(run, labelers, edited, samples))
    return {array: np.stack(values) for array, values in results.items()}


def _change_outside(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Return the mean absolute change, 0..1, of the pixels outside label and target masks.

    Both masks are those of the sample; the result is (sample,).  For a property that is not a mask,
    the mean is over all pixels of the image.
    """
    if labels.dtype != bool:
        labels = targets = np.zeros(labels.shape, bool)
    return background_change(before, after, labels, targets)


def _class_unchanged(
    run: Run, labelers: dict[str, Any], edited: np.ndarray, samples: list[int]
) -> np.ndarray:
    """Compare each sample's top class before and after the edit, (sample,) float64.

    The value is 1 for an unchanged class, 0 for a changed one, and NaN without a class labeler.
    """
    if "class" not in labelers:
        return np.full(len(edited), np.nan)
    top_class = run.read("labels", "class_score", sample=samples).argmax(1)
    return (labelers["class"](edited).argmax(1) == top_class).astype(float)


@lru_cache(maxsize=4)
def _directions(
    url: str, identity: str, spec: Intervention, shuffled: bool
) -> dict[tuple[int, str], EditDirection]:
    """Compute an intervention's edit directions by (step, layer); cached for all its batches.

    Args:
        url: URL or path of the run.
        identity: identity of the run.  It is a cache key only, so that the directions are computed
            again if another run has been created at the same URL.
        spec: settings of the intervention.
        shuffled: whether to use probes of shuffled labels.
    """
    run = Run(url)
    return directions_of(run, spec, plan_intervention(run, spec), label_set(run), shuffled)


register_units(
    UnitOperations(
        kind=EDIT,
        list_units=lambda run, name: [
            Unit((name, t, b), f"edit {name} · target {t} · batch {b:03d}")
            for t, b in edit_units(run, name)
        ],
        carry_out=edit_batch,
        is_done=lambda run, name, *unit: run.progress_of(f"{INTERVENTIONS_GROUP}/{name}").is_done(
            EDIT, *unit
        ),
    )
)
