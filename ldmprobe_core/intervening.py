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
from pydantic import BaseModel

from ldmprobe_core.arrays import Arrays
from ldmprobe_core.edits import Direction
from ldmprobe_core.emergence import Bootstrap, Interval
from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions import (
    METRICS,
    VARIANTS,
    Editor,
    Intervention,
    Plan,
    aims_of,
    change_outside,
    change_towards,
    directions_of,
    generate_edited,
    plan_intervention,
    scores_of,
)
from ldmprobe_core.labelers import labelers_of
from ldmprobe_core.stages import check_origin, label_set, samples_of
from ldmprobe_core.store import Run
from ldmprobe_core.targets import pin
from ldmprobe_core.workbench import loaded

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


def lay_out(run: Run, what: Intervention) -> str:
    """Check an intervention and create its arrays, or find them.

    Returns:
        the intervention's name, under which its results lie.

    Raises:
        UserError: the run does not hold what it needs, or was made by another model.
    """
    study = run.study()
    what = what.model_copy(update={"targets": tuple(pin(target) for target in what.targets)})
    plan = plan_intervention(run, what)
    check_origin(run, study)
    if what.prop not in labelers_of(study):
        raise UserError(f"labels.{what.prop} are maps, and edited images need a labeler: name one")
    own = run.read("labels", what.prop, sample=plan.samples)
    wanted = aims_of(_as_maps(run, what, own), what.targets)
    with run.claim():
        if run.has(f"{RECORDS}/{what.name}/intervention.json"):
            return what.name
        _create(run, what, plan, wanted)
        run.consolidate()  # so that a stranger's first look finds the new group too
        run.write_text(f"{RECORDS}/{what.name}/intervention.json", what.model_dump_json(indent=2))
    return what.name


def _as_maps(run: Run, what: Intervention, labels: np.ndarray) -> np.ndarray:
    return labels > run.study().labels.threshold if what.prop == "foreground" else labels


def _create(run: Run, what: Intervention, plan: Plan, wanted: np.ndarray) -> None:
    root = zarr.open_group(run.store, mode="r+", use_consolidated=False)
    if f"{FOLDER}/{what.name}" in root:  # begun and cut off before its record was written
        del root[f"{FOLDER}/{what.name}"]
    arrays = Arrays(root)
    group = arrays.group(f"{FOLDER}/{what.name}", f"{what.prop} edited, method {what.method}")
    sizes = run.open("images").sizes
    variants = _variants(what)
    targets, n = len(what.targets), len(plan.samples)
    batch = min(run.study().sampling.batch, n)
    arrays.coordinate(group, "variant", list(variants), "the edit proper, and its controls")
    arrays.coordinate(group, "target", [str(t) for t in what.targets], "what is aimed at")
    arrays.coordinate(group, "sample", plan.samples, "index of the image")
    arrays.coordinate(group, "rgb", ["red", "green", "blue"], "colour channel")
    arrays.coordinate(group, "metric", list(METRICS[what.prop]), "agreement with the target")
    where = {"target": targets, "sample": n}
    chunk = {"target": 1, "sample": batch}
    each = {"variant": len(variants), **where}
    pixels = {"y": sizes["y"], "x": sizes["x"]}
    arrays.array(group, "image", {**each, **pixels, "rgb": 3}, chunk, "uint8", "image", "0..255")
    arrays.array(group, "label", {**each, **pixels}, chunk, "float32", f"labeler's {what.prop}")
    arrays.array(group, "aim", {**where, **pixels}, chunk, "float32", "map aimed at")
    scores = {"metric": len(METRICS[what.prop]), **where}
    text = "agreement with the target"
    arrays.array(group, "unedited", scores, chunk, "float32", f"{text}, of the unedited image")
    arrays.array(group, "score", {"variant": len(variants), **scores}, chunk, "float32", text)
    arrays.array(group, "outside", each, chunk, "float32", "change off the object and its target")
    arrays.array(group, "kept", each, chunk, "float32", "1 where the class stays")
    arrays.array(group, "done", {"target": targets, "batch": -(-n // batch)},
                 {"target": 1, "batch": 1}, "uint8", "batch is edited", compress=False)  # fmt: skip
    run.write(f"{FOLDER}/{what.name}", {"aim": wanted.astype(np.float32)})


def _variants(what: Intervention) -> tuple[str, ...]:
    return VARIANTS if what.controls else VARIANTS[:1]


def read_intervention(run: Run, name: str) -> Intervention:
    """What an intervention of this name is.

    Raises:
        UserError: there is none.
    """
    return Intervention.model_validate_json(run.read_text(f"{RECORDS}/{name}/intervention.json"))


def units_of(run: Run, name: str) -> list[tuple[int, int]]:
    """Every (target, batch) of an intervention."""
    shape = run.open(f"{FOLDER}/{name}")["done"].shape
    return [(t, b) for t in range(shape[0]) for b in range(shape[1])]


def edit_batch(url: str, name: str, target: int, batch: int) -> dict[str, Any]:
    """Edit one batch of samples towards one target, all variants, and score the images.

    Returns:
        images and seconds; zero images where it was done before.
    """
    run = Run(url)
    group = f"{FOLDER}/{name}"
    if run.open(group)["done"].values[target, batch]:
        return {"images": 0, "seconds": 0.0}
    started = time.monotonic()
    study, what = run.study(), read_intervention(run, name)
    plan = plan_intervention(run, what)
    size = study.sampling.batch
    index = plan.samples[batch * size : (batch + 1) * size]
    where = {"target": slice(target, target + 1),
             "sample": slice(batch * size, batch * size + len(index))}  # fmt: skip
    samples = [samples_of(run)[i] for i in index]
    wanted = run.read(group, "aim", **where)[0]
    before = run.read("images", "image", sample=index)
    own = _as_maps(run, what, run.read("labels", what.prop, sample=index))
    if what.prop == "foreground":
        wanted = wanted > 0.5
    identity = run.read_text("identity")
    scores, maps, images, outside, kept = [], [], [], [], []
    with loaded(run) as (generator, labelers):
        for variant in _variants(what):
            real = _directions(url, identity, what, variant == "shuffled")
            seed = torch.Generator().manual_seed(what.seed + 1000 * target + batch)
            change = change_towards(what, plan.kind, wanted, seed if variant == "random" else None)
            edited = generate_edited(generator, samples, Editor(generator, real, change))
            found = labelers[what.prop](edited)
            images.append(edited)
            maps.append(found)
            scores.append(scores_of(what.prop, _as_maps(run, what, found), wanted))
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
            "unedited": scores_of(what.prop, own, wanted)[:, None].astype(np.float32),
        },
        **where,
    )  # fmt: skip
    done = zarr.open_group(run.store, path=group, mode="r+", use_consolidated=False)["done"]
    done[target, batch] = 1  # type: ignore[index]
    return {"images": len(index) * len(images), "seconds": time.monotonic() - started}


def _outside(before: np.ndarray, after: np.ndarray, own: np.ndarray, aim: np.ndarray) -> np.ndarray:
    """Change off both masks; a map has none, so there the whole image counts."""
    if own.dtype != bool:
        own = aim = np.zeros(own.shape, bool)
    return change_outside(before, after, own, aim)


def _kept(run: Run, labelers: dict[str, Any], edited: np.ndarray, index: list[int]) -> np.ndarray:
    if "class" not in labelers:
        return np.full(len(edited), np.nan)
    was = run.read("labels", "class_score", sample=index).argmax(1)
    return (labelers["class"](edited).argmax(1) == was).astype(float)


@lru_cache(maxsize=4)
def _directions(
    url: str, identity: str, what: Intervention, shuffled: bool
) -> dict[tuple[int, str], Direction]:
    """Directions of an intervention, kept for the next batch."""
    run = Run(url)
    return directions_of(run, what, plan_intervention(run, what), label_set(run), shuffled)


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
