"""Accumulation of sufficient statistics over one unit of training batches."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ldmprobe_core.pipeline.activation_sinks import GROUPS, Activations, InMemory
from ldmprobe_core.pipeline.generate import _pictures
from ldmprobe_core.pipeline.labels import as_labels
from ldmprobe_core.pipeline.model_cache import generator_for, labelers_for, on_device
from ldmprobe_core.pipeline.statistics import Tally, units_in
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.sample_table import samples_of
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study


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
