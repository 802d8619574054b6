"""Accumulation of sufficient statistics over one unit of training batches."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ldmprobe_core.models.finite import require_finite_labels, require_varied
from ldmprobe_core.pipeline.activation_sinks import ACTIVATION_GROUPS, ActivationBuffer, Activations
from ldmprobe_core.pipeline.generate import _pictures
from ldmprobe_core.pipeline.labels import as_labels
from ldmprobe_core.pipeline.model_cache import get_labelers, get_sampler, model_access
from ldmprobe_core.pipeline.statistics import Accumulator, run_accumulation_units
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import ACCUMULATE
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study


def accumulate_unit(url: str, part: int, number: int) -> dict[str, Any]:
    """Add the training samples of a few batches to a part's sums; its units go one after another.

    Where activations are stored they are read; else the batches are generated and labeled here,
    held in memory, one batch at a time, and let go.

    Returns:
        samples, seconds and bytes written; zero samples where it was done before.
    """
    run = Run(url)
    done = run.progress.count(ACCUMULATE, part)
    if done > number:
        return {"samples": 0, "seconds": 0.0, "bytes": 0}
    if done < number:
        raise RuntimeError(f"{run.url}: unit {number} of part {part} comes after unit {done}")
    started = time.monotonic()
    threadpool_limits(1, user_api="blas")  # as for cells
    study = run.study
    tally = Accumulator.read(run, part, done)
    before = tally.count
    samples = run.samples
    show = _sample_in_memory if study.capture.keep == "statistics" else _read_from_store
    for members in run_accumulation_units(run)[part][number]:
        training = [samples[i] for i in members if samples[i].split == "train"]
        if training:
            tally.add(*show(run, study, training), study)
    _require_unit(run, part, done)
    written = tally.write(run, part, done + 1)
    _require_unit(run, part, done)
    run.progress.set_count(ACCUMULATE, part, count=done + 1)
    seconds = time.monotonic() - started
    return {"samples": tally.count - before, "seconds": seconds, "bytes": written}


def _require_unit(run: Run, part: int, done: int) -> None:
    """Nobody else has added this unit meanwhile, taking this worker for dead.

    Raises:
        RuntimeError: somebody has; the slot that would be filled may be the one that counts now.
    """
    now = run.progress.count(ACCUMULATE, part)
    if now != done:
        raise RuntimeError(f"{run.url}: part {part} went on from {done} units to {now} meanwhile")


_TrainingBatch = tuple[dict[str, Activations], dict[str, np.ndarray]]


def _sample_in_memory(run: Run, study: Study, samples: list[Sample]) -> _TrainingBatch:
    """Activations and label maps of training samples that the store does not hold."""
    kept = ActivationBuffer()
    pictures, maps = _pictures(run, study, samples)
    attributes = run.attributes()
    with model_access(study):
        sampler = get_sampler(study, attributes["model_fingerprint"])
        made = sampler.sample(samples, kept, pictures, step_images=False)
        labelers = get_labelers(study, attributes["labeler_fingerprints"])
        members = [sample.index for sample in samples]
        require_varied(made.image, members)
        read = {p: labelers[p](made.image) for p in study.labels.maps if p in labelers}
        for prop, values in read.items():
            require_finite_labels(prop, values, members)
    return kept.pop(), as_labels(study, {p: read.get(p, maps.get(p)) for p in study.labels.maps})


def _read_from_store(run: Run, study: Study, samples: list[Sample]) -> _TrainingBatch:
    """The same, of samples that it holds."""
    index = np.array([sample.index for sample in samples])
    shown = {}
    for network, group in ACTIVATION_GROUPS.items():
        if network == "trained" or study.controls.permuted_weights:
            layers = run.probe_inputs if network == "trained" else run.layers
            parts = [
                {n: run.read(f"{group}/{n}", name, sample=index) for n in layers}
                for name in ("activation", "nonfinite")
            ]
            shown[network] = Activations(*parts)
    maps = {prop: run.read("labels", prop, sample=index) for prop in study.labels.maps}
    return shown, as_labels(study, maps)
