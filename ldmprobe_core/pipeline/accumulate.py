"""Accumulation of sufficient statistics over one unit of training batches."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.finite import require_finite_labels, require_varied
from ldmprobe_core.pipeline.activation_sinks import ACTIVATION_GROUPS, ActivationBuffer, Activations
from ldmprobe_core.pipeline.generate import read_source_images
from ldmprobe_core.pipeline.labels import as_labels
from ldmprobe_core.pipeline.model_cache import get_labelers, get_sampler, model_access
from ldmprobe_core.pipeline.statistics import Accumulator, run_accumulation_units
from ldmprobe_core.probing.measured import measured
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import ACCUMULATE
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study


def accumulate_unit(url: str, part: int, number: int) -> dict[str, Any]:
    """Add the training samples of a few batches to an accumulator; its units run in sequence.

    Stored activations are read.  Otherwise each batch is generated and labeled here, in memory.

    Args:
        part: number of the accumulator.
        number: of the unit, from 0.

    Returns:
        samples, seconds and bytes written; zero samples if the unit was done before.

    Raises:
        RuntimeError: the units before it are not complete, or another worker added this one.
    """
    run = Run(url)
    done = run.progress.count(ACCUMULATE, part)
    if done > number:
        return {"samples": 0, "seconds": 0.0, "bytes": 0}
    if done < number:
        raise RuntimeError(
            f"{run.url}: accumulator {part} has {done} of the {number} units that must precede "
            f"unit {number}. Fix: submit its units in order"
        )
    started = time.monotonic()
    threadpool_limits(1, user_api="blas")  # see `probe_cell`: threads change last bits
    study = run.study
    accumulator = Accumulator.read(run, part, done)
    before = accumulator.count
    samples = run.samples
    load_batch = _sample_in_memory if study.capture.keep == "statistics" else _read_from_store
    for members in run_accumulation_units(run)[part][number]:
        training = [samples[i] for i in members if samples[i].split == "train"]
        if training:
            activations, labels = load_batch(run, study, training)
            _require_measured(labels)
            accumulator.add(activations, labels, study)
    _require_unit(run, part, done)
    written = accumulator.write(run, part, done + 1)
    _require_unit(run, part, done)
    run.progress.set_count(ACCUMULATE, part, count=done + 1)
    seconds = time.monotonic() - started
    return {"samples": accumulator.count - before, "seconds": seconds, "bytes": written}


def _require_unit(run: Run, part: int, done: int) -> None:
    """Check that no other worker took this one for dead and accumulated the unit as well.

    Raises:
        RuntimeError: one has; the buffer that this unit would fill may be the active one.
    """
    now = run.progress.count(ACCUMULATE, part)
    if now != done:
        raise RuntimeError(
            f"{run.url}: accumulator {part} advanced from {done} units to {now} while this unit "
            "ran; its result is discarded"
        )


def _require_measured(labels: dict[str, np.ndarray]) -> None:
    """Refuse labels with pixels that were not measured, which would make all sums NaN.

    Raises:
        UserError: there are such pixels; the property is named.
    """
    for prop, maps in labels.items():
        if measured(maps) is not None:
            raise UserError(
                f"labels.{prop}: some pixels of the maps are not measured, and sums are of all "
                "pixels. Fix: set capture.keep to activations"
            )


_TrainingBatch = tuple[dict[str, Activations], dict[str, np.ndarray]]


def _sample_in_memory(run: Run, study: Study, samples: list[Sample]) -> _TrainingBatch:
    """Generate and label training samples in memory; returns activations and label maps."""
    buffer = ActivationBuffer()
    source_images, maps = read_source_images(run, study, samples)
    attributes = run.attributes
    with model_access(study):
        sampler = get_sampler(study, attributes["model_fingerprint"])
        sampled = sampler.sample(samples, buffer, source_images, step_images=False)
        labelers = get_labelers(study, attributes["labeler_fingerprints"])
        members = [sample.index for sample in samples]
        require_varied(sampled.image, members)
        labels = {p: labelers[p](sampled.image) for p in study.labels.maps if p in labelers}
        for prop, values in labels.items():
            require_finite_labels(prop, values, members)
    return buffer.pop(), as_labels(
        study, {p: labels.get(p, maps.get(p)) for p in study.labels.maps}
    )


def _read_from_store(run: Run, study: Study, samples: list[Sample]) -> _TrainingBatch:
    """Read activations and label maps of stored training samples."""
    index = np.array([sample.index for sample in samples])
    activations = {}
    for network, group in ACTIVATION_GROUPS.items():
        if network == "trained" or study.controls.permuted_weights:
            layers = run.probe_inputs if network == "trained" else run.layers
            parts = [
                {n: run.read(f"{group}/{n}", name, sample=index) for n in layers}
                for name in ("activation", "nonfinite")
            ]
            activations[network] = Activations(*parts)
    maps = {prop: run.read("labels", prop, sample=index) for prop in study.labels.maps}
    return activations, as_labels(study, maps)
