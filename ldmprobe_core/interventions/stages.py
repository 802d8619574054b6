"""The verbs of an intervention on a run: lay out, edit a batch towards a target, summarise.

Results lie in the run's own store under ``interventions/<name>``; a batch is complete or absent, as
everywhere, so the same call resumes.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import zarr

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.directions import directions_of
from ldmprobe_core.interventions.edit import EditDirection
from ldmprobe_core.interventions.editor import Editor, make_edit, sample_edited
from ldmprobe_core.interventions.plan import InterventionPlan, plan_intervention
from ldmprobe_core.interventions.results import FOLDER, RECORDS, edit_conditions, read_intervention
from ldmprobe_core.interventions.scores import background_change, score_maps_against_targets
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.targets import resolve_target, target_maps
from ldmprobe_core.labelers.registry import labelers_of
from ldmprobe_core.pipeline.labels import as_label, label_set
from ldmprobe_core.pipeline.model_cache import use_models
from ldmprobe_core.pipeline.prepare import check_origin
from ldmprobe_core.pipeline.units import Unit, UnitOperations, register_units
from ldmprobe_core.storage.group_builder import GroupBuilder
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT
from ldmprobe_core.study.properties import property_of


def create_intervention(run: Run, what: Intervention) -> str:
    """Check an intervention and create its arrays, or find them.

    Returns:
        the intervention's name, under which its results lie.

    Raises:
        UserError: the run does not hold what it needs, or was made by another model.
    """
    study = run.study
    what = what.model_copy(
        update={"targets": tuple(resolve_target(target) for target in what.targets)}
    )
    plan = plan_intervention(run, what)
    check_origin(run, study)
    if what.prop not in labelers_of(study):
        raise UserError(f"labels.{what.prop} are maps, and edited images need a labeler: name one")
    own = run.read("labels", what.prop, sample=plan.samples)
    wanted = target_maps(_as_maps(run, what, own), what.targets)
    with run.creation_lock():
        if run.location.has(f"{RECORDS}/{what.name}/intervention.json"):
            return what.name
        _create(run, what, plan, wanted)
        run.consolidate()  # so that a stranger's first look finds the new group too
        run.location.write_text(
            f"{RECORDS}/{what.name}/intervention.json", what.model_dump_json(indent=2)
        )
    return what.name


def _as_maps(run: Run, what: Intervention, labels: np.ndarray) -> np.ndarray:
    return as_label(run.study, what.prop, labels)


def _create(run: Run, what: Intervention, plan: InterventionPlan, wanted: np.ndarray) -> None:
    root = zarr.open_group(run.store, mode="r+", use_consolidated=False)
    if f"{FOLDER}/{what.name}" in root:  # begun and cut off before its record was written
        del root[f"{FOLDER}/{what.name}"]
    arrays = GroupBuilder(root)
    group = arrays.group(f"{FOLDER}/{what.name}", f"{what.prop} edited, method {what.method}")
    sizes = run.open("images").sizes
    conditions = edit_conditions(what)
    targets, n = len(what.targets), len(plan.samples)
    batch = min(run.study.sampling.batch, n)
    arrays.coordinate(group, "condition", list(conditions), "the edit proper, and its controls")
    arrays.coordinate(group, "target", [str(t) for t in what.targets], "what is aimed at")
    arrays.coordinate(group, "sample", plan.samples, "index of the image")
    arrays.coordinate(group, "rgb", ["red", "green", "blue"], "colour channel")
    arrays.coordinate(group, "metric", list(what.defaults.metrics), "agreement with the target")
    where = {"target": targets, "sample": n}
    chunk = {"target": 1, "sample": batch}
    each = {"condition": len(conditions), **where}
    pixels = {"y": sizes["y"], "x": sizes["x"]}
    arrays.array(group, "image", {**each, **pixels, "rgb": 3}, chunk, "uint8", "image", "0..255")
    arrays.array(group, "label", {**each, **pixels}, chunk, "float32", f"labeler's {what.prop}")
    arrays.array(group, "target_map", {**where, **pixels}, chunk, "float32", "map aimed at")
    scores = {"metric": len(what.defaults.metrics), **where}
    text = "agreement with the target"
    arrays.array(group, "unedited", scores, chunk, "float32", f"{text}, of the unedited image")
    arrays.array(group, "score", {"condition": len(conditions), **scores}, chunk, "float32", text)
    arrays.array(group, "outside", each, chunk, "float32", "change off the object and its target")
    arrays.array(group, "kept", each, chunk, "float32", "1 where the class stays")
    units = {"target": targets, "batch": -(-n // batch)}
    one = dict.fromkeys(units, 1)
    arrays.array(group, EDIT.progress, units, one, EDIT.dtype, EDIT.description, compress=False)
    run.write(f"{FOLDER}/{what.name}", {"target_map": wanted.astype(np.float32)})


def edit_units(run: Run, name: str) -> list[tuple[int, int]]:
    """Every (target, batch) of an intervention."""
    shape = run.progress_of(f"{FOLDER}/{name}").counts(EDIT).shape
    return [(t, b) for t in range(shape[0]) for b in range(shape[1])]


def edit_batch(url: str, name: str, target: int, batch: int) -> dict[str, Any]:
    """Edit one batch of samples towards one target, all conditions, and score the images.

    Returns:
        images and seconds; zero images where it was done before.
    """
    run = Run(url)
    group = f"{FOLDER}/{name}"
    progress = run.progress_of(group)
    if progress.is_done(EDIT, target, batch):
        return {"images": 0, "seconds": 0.0}
    started = time.monotonic()
    study, what = run.study, read_intervention(run, name)
    plan = plan_intervention(run, what)
    size = study.sampling.batch
    index = plan.samples[batch * size : (batch + 1) * size]
    where = {"target": slice(target, target + 1),
             "sample": slice(batch * size, batch * size + len(index))}  # fmt: skip
    samples = [run.samples[i] for i in index]
    wanted = run.read(group, "target_map", **where)[0]
    before = run.read("images", "image", sample=index)
    own = _as_maps(run, what, run.read("labels", what.prop, sample=index))
    if property_of(what.prop).is_mask:
        wanted = wanted > 0.5
    identity = run.location.read_text("identity")
    scores, maps, images, outside, kept = [], [], [], [], []
    with use_models(run) as (sampler, labelers):
        for condition in edit_conditions(what):
            real = _directions(url, identity, what, condition == "shuffled")
            seed = torch.Generator().manual_seed(what.seed + 1000 * target + batch)
            change = make_edit(what, plan.kind, wanted, seed if condition == "random" else None)
            edited = sample_edited(sampler, samples, Editor(sampler, real, change))
            found = labelers[what.prop](edited)
            images.append(edited)
            maps.append(found)
            scores.append(
                score_maps_against_targets(what.defaults, _as_maps(run, what, found), wanted)
            )
            outside.append(_outside(before, edited, own, wanted))
            kept.append(_kept(run, labelers, edited, index))
    stacked = {
        "image": np.stack(images), "label": np.stack(maps), "score": np.stack(scores),
        "outside": np.stack(outside), "kept": np.stack(kept),
    }  # fmt: skip
    axis = {"score": 2}
    run.write(
        group,
        {
            **{n: np.expand_dims(v, axis.get(n, 1)).astype(np.uint8 if n == "image" else np.float32)
               for n, v in stacked.items()},
            "unedited": score_maps_against_targets(what.defaults, own, wanted)[:, None].astype(
                np.float32
            ),
        },
        **where,
    )  # fmt: skip
    progress.mark_done(EDIT, target, batch)
    return {"images": len(index) * len(images), "seconds": time.monotonic() - started}


def _outside(before: np.ndarray, after: np.ndarray, own: np.ndarray, aim: np.ndarray) -> np.ndarray:
    """Change off both masks; a map has none, so there the whole image counts."""
    if own.dtype != bool:
        own = aim = np.zeros(own.shape, bool)
    return background_change(before, after, own, aim)


def _kept(run: Run, labelers: dict[str, Any], edited: np.ndarray, index: list[int]) -> np.ndarray:
    if "class" not in labelers:
        return np.full(len(edited), np.nan)
    was = run.read("labels", "class_score", sample=index).argmax(1)
    return (labelers["class"](edited).argmax(1) == was).astype(float)


@lru_cache(maxsize=4)
def _directions(
    url: str, identity: str, what: Intervention, shuffled: bool
) -> dict[tuple[int, str], EditDirection]:
    """Directions of an intervention, kept for the next batch."""
    run = Run(url)
    return directions_of(run, what, plan_intervention(run, what), label_set(run), shuffled)


register_units(
    UnitOperations(
        kind=EDIT,
        list_units=lambda run, name: [
            Unit((name, t, b), f"edit {name} · target {t} · batch {b:03d}")
            for t, b in edit_units(run, name)
        ],
        carry_out=edit_batch,
        is_done=lambda run, name, *unit: run.progress_of(f"{FOLDER}/{name}").is_done(EDIT, *unit),
    )
)
