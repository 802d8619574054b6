"""Computation of one accumulation unit, which adds a few batches to sums over training samples."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.devices import pick_device
from ldmprobe_core.models.output_checks import require_varied
from ldmprobe_core.pipeline.activation_sinks import ActivationBuffer, Activations
from ldmprobe_core.pipeline.generate import read_source_images
from ldmprobe_core.pipeline.groups import ACTIVATION_GROUPS, samples_in
from ldmprobe_core.pipeline.label import checked_labels
from ldmprobe_core.pipeline.labels import as_labels
from ldmprobe_core.pipeline.model_cache import get_labelers, get_sampler, model_access
from ldmprobe_core.pipeline.statistics import (
    Accumulator,
    run_accumulation_units,
    summed_inputs,
    summed_networks,
)
from ldmprobe_core.probing.measured import measured
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.storage.units import ACCUMULATE
from ldmprobe_core.study.batching import permuted_samples
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study


def accumulate_unit(url: str, part: int, number: int) -> dict[str, Any]:
    """Add the activations and labels of a few training batches (one unit) to an accumulator.

    If the run stores activations, they are read; otherwise the batches are generated and labeled in
    memory.  The units of an accumulator must be run in order.

    Args:
        url: URL of the run.
        part: index of the accumulator (from 0).
        number: index of the unit within the accumulator (from 0).

    Returns:
        numbers of ``samples`` added, ``seconds`` taken and ``bytes`` written; all are 0 if the unit
        was complete already.

    Raises:
        RuntimeError: an earlier unit is not complete, or another worker has added this unit.
        CorruptChunkError: the sums of the earlier units are not as they were written.
        UserError: the maps have pixels without a measured value.
    """
    run = Run(url)
    done = run.progress.count(ACCUMULATE, part)
    if done > number:
        return {"samples": 0, "seconds": 0.0, "bytes": 0}
    if done < number:
        raise RuntimeError(
            f"{run.url}: unit {number} of accumulator {part} cannot start, because only {done} of "
            f"the {number} units before it are complete. Fix: submit the accumulator's units in "
            "order."
        )
    started = time.monotonic()
    # The number of BLAS threads affects the last bits of sums.  One thread makes them reproducible.
    threadpool_limits(1, user_api="blas")
    study = run.study
    try:
        accumulator = Accumulator.read(run, part, done)
    except CorruptChunkError:
        # Another worker may be writing this buffer, after it has added the unit.
        _require_unit(run, part, done)
        raise
    before = accumulator.count
    samples, device = run.samples, pick_device(study.execution.wanted_device)
    load_batch = _sample_in_memory if study.capture.keep == "statistics" else _read_from_store
    for members in run_accumulation_units(run)[part][number]:
        training = [samples[i] for i in members if samples[i].split == "train"]
        if training:
            activations, labels = load_batch(run, study, training)
            _require_measured(labels)
            accumulator.add(activations, labels, study, training[0].index, device)
    _require_unit(run, part, done)
    written = accumulator.write(run, part, done + 1)
    _require_unit(run, part, done)
    run.progress.set_count(ACCUMULATE, part, count=done + 1)
    seconds = time.monotonic() - started
    return {"samples": accumulator.count - before, "seconds": seconds, "bytes": written}


def _require_unit(run: Run, part: int, done: int) -> None:
    """Check that no other worker has added units to the accumulator since this unit started.

    A worker that does not respond for long is considered lost, and its unit is given to another.
    If it continues nevertheless, its write could overwrite sums that are in use.

    Args:
        run: the run.
        part: index of the accumulator.
        done: number of complete units of the accumulator when the current unit started.

    Raises:
        RuntimeError: the number of complete units has changed.
    """
    now = run.progress.count(ACCUMULATE, part)
    if now != done:
        raise RuntimeError(
            f"{run.url}: another worker advanced accumulator {part} from {done} units to {now} "
            "while this unit ran. Fix: nothing to do; this unit's result is discarded, and the "
            "other worker's is used."
        )


def _require_measured(labels: dict[str, np.ndarray]) -> None:
    """Refuse label maps with NaN (pixels without a measured value), since sums would be NaN.

    Args:
        labels: property to maps (sample, y, x).

    Raises:
        UserError: a map has such pixels.
    """
    for prop, maps in labels.items():
        if measured(maps) is not None:
            raise UserError(
                f"labels.{prop}: some pixels of the maps have no measured value (NaN), but "
                "capture.keep asks for sums over all pixels. Fix: set capture.keep to activations."
            )


_TrainingBatch = tuple[dict[str, Activations], dict[str, np.ndarray]]


def _sample_in_memory(run: Run, study: Study, samples: list[Sample]) -> _TrainingBatch:
    """Generate and label training samples, and return activations and labels without storing them.

    Returns:
        activations by network, and label maps (sample, y, x) by property.
    """
    buffer = ActivationBuffer()
    source_images, maps = read_source_images(run, study, samples)
    attributes = run.attributes
    with model_access(study):
        sampler = get_sampler(study, attributes["model_fingerprint"])
        permuted = samples[0].index in permuted_samples(study, run.samples)
        sampled = sampler.sample(samples, buffer, source_images, False, permuted)
        labelers = get_labelers(study, attributes["labeler_fingerprints"])
        members = [sample.index for sample in samples]
        require_varied(sampled.image, members)
        of_maps = {p: labelers[p] for p in study.labels.maps if p in labelers}
        labels = checked_labels(study, of_maps, sampled.image, members)
    return buffer.pop(), as_labels(
        study, {p: labels.get(p, maps.get(p)) for p in study.labels.maps}
    )


def _read_from_store(run: Run, study: Study, samples: list[Sample]) -> _TrainingBatch:
    """Read the stored activations and label maps of training samples from the run.

    Returns:
        activations by network, and label maps (sample, y, x) by property.
    """
    index = np.array([sample.index for sample in samples])
    activations = {}
    for network in summed_networks(run):
        layers, group = summed_inputs(run, network), ACTIVATION_GROUPS[network]
        present = samples_in(run, f"{group}/{layers[0]}")
        positions = np.flatnonzero(np.isin(index, present))
        rows = np.searchsorted(present, index[positions])
        if not len(rows):
            continue
        values, bad = (
            {n: run.read(f"{group}/{n}", name, sample=rows) for n in layers}
            for name in ("activation", "nonfinite")
        )
        activations[network] = Activations(values, bad, positions)
    maps = {prop: run.read("labels", prop, sample=index) for prop in study.labels.maps}
    return activations, as_labels(study, maps)
