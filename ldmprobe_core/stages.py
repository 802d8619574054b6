"""The verbs of a run: prepare, generate, label, tally, probe.

Each does one unit of work on the store.  Arguments are small references (a run, a batch number, a
cell), never arrays.  A unit that is marked complete is left alone, so any of these can be called
again after any interruption.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ldmprobe_core.cells import LabelSet, probe_activations
from ldmprobe_core.errors import UserError
from ldmprobe_core.keeping import GROUPS, Activations, InMemory, IntoStore
from ldmprobe_core.labelers import check_labeler, labelers_of
from ldmprobe_core.layout import Blueprint
from ldmprobe_core.models import fingerprint, model_folder
from ldmprobe_core.pictures import map_path, read_map, read_picture
from ldmprobe_core.places import Place
from ldmprobe_core.planning import Plan, check_store, make_plan
from ldmprobe_core.prompts import Sample, make_samples, pin_inputs
from ldmprobe_core.store import Run
from ldmprobe_core.study import LATENTS, Study
from ldmprobe_core.tallies import Tally, mean_maps, require_tallied, sums_of, units_in
from ldmprobe_core.two_layer import TwoLayerProbe
from ldmprobe_core.workbench import generator_for, labelers_for, on_device

_PACKAGES = ("ldmprobe", "torch", "diffusers", "transformers", "numpy", "zarr", "xarray", "prefect")


def prepare(study: Study, store: str) -> Run:
    """Check the study, then lay its run out in ``store``, or find it there.

    Raises:
        UserError: a mistake in the study, a store that is too small or cannot be written to, or a
            run there that another model made.
    """
    plan = make_plan(study)
    plan.require_complete()
    study = pin_inputs(study)
    run = run_in(store, study)
    check_store(plan, run)
    if not run.exists:
        blueprint, record = _blueprint(study, plan)  # takes long: before the place is claimed
        with run.claim() as claim:
            if not run.exists:
                claim.require_held()
                run.lay_out(blueprint, record)
                return run
    check_origin(run, study)
    run.write_text("study.json", study.to_json())  # the same but for where it now runs
    return run


def _blueprint(study: Study, plan: Plan) -> tuple[Blueprint, dict[str, Any]]:
    """The shape of a study's run, and what is recorded with it."""
    with on_device(study):
        labelers = labelers_for(study)
    units = dict.fromkeys(study.labels.maps, "as the maps that were given")
    blueprint = Blueprint(
        study,
        make_samples(study),
        plan.shapes,
        plan.size,
        plan.steps,
        labelers["class"].classes if "class" in labelers else (),
        units | {prop: labeler.units for prop, labeler in labelers.items()},
        plan.truth,
    )
    return blueprint, {
        "model_fingerprint": fingerprint(model_folder(study.model)),
        "labeler_fingerprints": plan.labelers,
        "versions": versions(),
    }


def check_origin(run: Run, study: Study) -> None:
    """Refuse to take a run that another model or other labelers made for this study's.

    Raises:
        UserError: their files are not those that the run was begun with.
    """
    attributes = run.attributes()
    for prop, reader in labelers_of(study).items():
        begun, now = attributes["labeler_fingerprints"].get(prop), check_labeler(prop, reader)
        if begun != now:
            raise UserError(
                f"{run.url} was labeled by weights of labels.{prop} with fingerprint {begun}, and "
                f"they now have {now}: move that run away or choose another --store"
            )
    made_by = attributes["model_fingerprint"]
    mark = fingerprint(model_folder(study.model))
    if made_by != mark:
        raise UserError(
            f"{run.url} was made by a model with fingerprint {made_by}, and "
            f"model.source {study.model.source!r} now has {mark}: move that run away or "
            "choose another --store"
        )


def run_in(store: str, study: Study) -> Run:
    """The study's run in a store, laid out or not.

    Raises:
        UserError: the store is no place.
    """
    return Run(f"{Place(store).url}/{study.run_name}")


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def generate_batch(url: str, batch: int) -> dict[str, Any]:
    """Generate one batch and write images and activations.

    Returns:
        samples, seconds and bytes written; zero samples where it was done before.
    """
    run = Run(url)
    if run.done("generated", batch):
        return {"samples": 0, "seconds": 0.0, "bytes": 0}
    started = time.monotonic()
    study = run.study()
    members = study.batches(run.stored)[batch]
    samples = samples_of(run)[members.start : members.stop]
    pictures, maps = _pictures(run, study, samples)
    region = slice(members.start, members.stop)
    with IntoStore(run, region) as activations, on_device(study):
        generator = generator_for(study, run.attributes()["model_fingerprint"])
        made = generator.generate(samples, activations, pictures)
    assert made.trajectory is not None
    assert made.clean is not None
    images = {"image": made.image, "trajectory": made.trajectory, "clean": made.clean}
    run.write("images", images, sample=region)
    if maps:
        run.write("truth", maps, sample=region)
    written = activations.bytes + sum(part.nbytes for part in images.values())
    run.mark("generated", batch)
    return {"samples": len(members), "seconds": time.monotonic() - started, "bytes": written}


def _pictures(
    run: Run, study: Study, samples: list[Sample]
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """Pictures (sample, y, x, rgb) and exact maps of a batch; none where images are generated."""
    if study.images is None:
        return None, {}
    folder, sizes = Path(study.images.folder), run.open("images").sizes
    size = sizes["y"], sizes["x"]
    names = [str(sample.picture) for sample in samples]
    maps = {}
    for prop in run.truth:
        found = [(map_path(folder, name, prop), folder / name) for name in names]
        maps[prop] = np.stack([read_map(m, prop, size, p) for m, p in found if m is not None])
    return _pictures_of(folder, names, size), maps


def _pictures_of(folder: Path, names: list[str], size: tuple[int, int]) -> np.ndarray:
    return np.stack([read_picture(folder / name, size) for name in names])


def label_batch(url: str, batch: int) -> dict[str, Any]:
    """Label one batch: finished images, decoded latents and predicted clean images.

    Returns:
        images, seconds and bytes written; zero images where it was done before.
    """
    run = Run(url)
    if run.done("labeled", batch):
        return {"images": 0, "seconds": 0.0, "bytes": 0}
    if not run.done("generated", batch):
        raise RuntimeError(f"{run.url}: batch {batch} cannot be labeled before it is generated")
    started = time.monotonic()
    study = run.study()
    members = study.batches(run.stored)[batch]
    region = slice(members.start, members.stop)
    fingerprints = run.attributes()["labeler_fingerprints"]
    count = written = 0
    for source, group in (
        ("image", "labels"),
        ("trajectory", "labels_trajectory"),
        ("clean", "labels_clean"),
    ):
        images = run.read("images", source, sample=region)
        leading = images.shape[:-3]
        flat = images.reshape(-1, *images.shape[-3:])
        count += len(flat)
        with on_device(study):
            torch.set_num_threads(study.sampling.threads)
            labels = {
                "class_score" if prop == "class" else prop: labeler(flat)
                for prop, labeler in labelers_for(study, fingerprints).items()
            }
        for prop in study.labels.maps:
            if prop not in labels:  # exact maps: of the picture they are known, of a step not
                shape = flat.shape[:3]
                labels[prop] = (
                    run.read("truth", prop, sample=region)
                    if source == "image"
                    else np.full(shape, np.nan, np.float32)
                )
        stored = {
            name: values.reshape(*leading, *values.shape[1:]).astype(
                np.float32 if source == "image" or name == "class_score" else np.float16
            )
            for name, values in labels.items()
        }
        run.write(group, stored, sample=region)
        written += sum(values.nbytes for values in stored.values())
    run.mark("labeled", batch)
    return {"images": count, "seconds": time.monotonic() - started, "bytes": written}


def tally_unit(url: str, part: int, number: int) -> dict[str, Any]:
    """Add the training samples of a few batches to a part's sums; its units go one after another.

    Where activations are stored they are read; else the batches are generated and labeled here,
    held in memory, one batch at a time, and let go.

    Returns:
        samples, seconds and bytes written; zero samples where it was done before.
    """
    run = Run(url)
    done = run.count("tallied", part)
    if done > number:
        return {"samples": 0, "seconds": 0.0, "bytes": 0}
    if done < number:
        raise RuntimeError(f"{run.url}: unit {number} of part {part} comes after unit {done}")
    started = time.monotonic()
    threadpool_limits(1, user_api="blas")  # as for cells
    study = run.study()
    tally = Tally.read(run, part, done)
    before = tally.count
    samples = samples_of(run)
    show = _shown_anew if study.capture.store == "statistics" else _shown_in_store
    for members in units_in(run)[part][number]:
        training = [samples[i] for i in members if samples[i].split == "train"]
        if training:
            tally.add(*show(run, study, training), study)
    _require_unit(run, part, done)
    written = tally.write(run, part, done + 1)
    _require_unit(run, part, done)
    run.mark("tallied", part, count=done + 1)
    seconds = time.monotonic() - started
    return {"samples": tally.count - before, "seconds": seconds, "bytes": written}


def _require_unit(run: Run, part: int, done: int) -> None:
    """Nobody else has added this unit meanwhile, taking this worker for dead.

    Raises:
        RuntimeError: somebody has; the slot that would be filled may be the one that counts now.
    """
    now = run.count("tallied", part)
    if now != done:
        raise RuntimeError(f"{run.url}: part {part} went on from {done} units to {now} meanwhile")


_Shown = tuple[dict[str, Activations], dict[str, np.ndarray]]


def _shown_anew(run: Run, study: Study, samples: list[Sample]) -> _Shown:
    """Activations and label maps of training samples that the store does not hold."""
    kept = InMemory()
    pictures, maps = _pictures(run, study, samples)
    attributes = run.attributes()
    with on_device(study):
        generator = generator_for(study, attributes["model_fingerprint"])
        made = generator.generate(samples, kept, pictures, step_images=False)
        labelers = labelers_for(study, attributes["labeler_fingerprints"])
        read = {p: labelers[p](made.image) for p in study.labels.maps if p in labelers}
    return kept.take(), as_labels(study, {p: read.get(p, maps.get(p)) for p in study.labels.maps})


def _shown_in_store(run: Run, study: Study, samples: list[Sample]) -> _Shown:
    """The same, of samples that it holds."""
    index = np.array([sample.index for sample in samples])
    shown = {}
    for variant, group in GROUPS.items():
        if variant == "real" or study.controls.permuted:
            layers = run.probed if variant == "real" else run.layers
            parts = [
                {n: run.read(f"{group}/{n}", name, sample=index) for n in layers}
                for name in ("activation", "nonfinite")
            ]
            shown[variant] = Activations(*parts)
    maps = {prop: run.read("labels", prop, sample=index) for prop in study.labels.maps}
    return shown, as_labels(study, maps)


def as_labels(study: Study, maps: dict[str, Any]) -> dict[str, np.ndarray]:
    """Label maps by property as probes meet them: foreground is a mask."""
    return {
        prop: values > study.labels.threshold if prop == "foreground" else values
        for prop, values in maps.items()
    }


def probe_cell(url: str, step: int, layer: str) -> dict[str, Any]:
    """Train and score every probe and control of one cell.

    Args:
        step: from 1.

    Returns:
        seconds and bytes read; zero where it was done before.
    """
    run = Run(url)
    at, where = step - 1, run.probed.index(layer)
    if run.done("probed", at, where):
        return {"seconds": 0.0, "bytes": 0}
    started = time.monotonic()
    study = run.study()
    # Sums depend on the number of BLAS threads in their last bits; cells run side by side instead.
    threadpool_limits(1, user_api="blas")
    torch.set_num_threads(1)
    labels = _label_set(url, run.read_text("identity"))
    real = run.read(f"activations/{layer}", "activation", step=at)
    read = real.nbytes
    deals = ("real", "shuffled") if study.controls.shuffled else ("real",)
    results = probe_activations(real, labels, study, deals, sums_of(run, "real", step, layer))
    if study.controls.permuted and layer != LATENTS:
        twin = run.read(f"permuted/{layer}", "activation", step=at)
        read += twin.nbytes
        sums = sums_of(run, "permuted", step, layer)
        results["permuted"] = probe_activations(twin, labels, study, sums=sums)["real"]

    channels = real.shape[-1]
    kinds, maps = study.probes.kinds, study.labels.maps
    weight = np.full((len(kinds), len(maps), 1, channels), np.nan)
    bias = np.full((len(kinds), len(maps), 1), np.nan)
    penalty = bias.copy()
    for (kind, prop), probe in results["real"].probes.items():
        if isinstance(probe, TwoLayerProbe):  # a control: scored, not kept
            continue
        place = kinds.index(kind), maps.index(prop), 0
        weight[place], bias[place], penalty[place] = probe.weight, probe.bias, probe.penalty
    cell = {"step": slice(at, at + 1)}
    run.write(f"probes/{layer}", {"weight": weight, "bias": bias, "penalty": penalty}, **cell)
    nothing = {prop: np.full_like(score, np.nan) for prop, score in results["real"].scores.items()}
    for prop in maps:
        scores = [
            results[v].scores[prop] if v in results else nothing[prop]
            for v in ("real", "shuffled", "permuted")
        ]
        run.write(
            f"scores/{prop}",
            {"score": np.stack(scores)[:, :, :, None, None, :]},
            layer=slice(where, where + 1),
            **cell,
        )
    run.mark("probed", at, where)
    return {"seconds": time.monotonic() - started, "bytes": read}


def samples_of(run: Run) -> list[Sample]:
    """The run's samples, as they were laid down when it was created."""
    table = run.open("samples").load()
    return [
        Sample(
            int(i), str(prompt), int(seed), str(category) or None, str(split), str(picture) or None
        )
        for i, prompt, seed, category, split, picture in zip(
            table.sample.values,
            table.prompt.values,
            table.seed.values,
            table.category.values,
            table.split.values,
            table.picture.values,
            strict=True,
        )
    ]


def label_set(run: Run) -> LabelSet:
    """Labels of the finished images that are stored, with splits.

    Raises:
        RuntimeError: some batch is not labeled, or not in the statistics.
    """
    run.require_all("labeled")
    study = run.study()
    maps = as_labels(study, {prop: run.read("labels", prop) for prop in study.labels.maps})
    split = np.array([sample.split for sample in samples_of(run)[: run.stored]])
    train = np.flatnonzero(split == "train")
    if study.capture.store == "statistics":
        require_tallied(run)
        means = mean_maps(run)
    else:
        means = {prop: values[train].mean(0, dtype=np.float64) for prop, values in maps.items()}
    return LabelSet(
        maps,
        means,
        train=train,
        validation=np.flatnonzero(split == "validation"),
        held=np.flatnonzero(split != "train"),
    )


@lru_cache(maxsize=2)
def _label_set(url: str, identity: str) -> LabelSet:
    """`label_set`, kept for the next cell; a run that was begun anew has another identity."""
    return label_set(Run(url))
