"""Computation of one probing unit: all probes and controls of one cell (step and layer)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ldmprobe_core.pipeline.groups import ACTIVATION_GROUPS, samples_in
from ldmprobe_core.pipeline.labels import cached_label_set
from ldmprobe_core.pipeline.statistics import unstored_statistics
from ldmprobe_core.probing.cell import CellResult, probe_activations
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.neighbourhood import probe_features
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE
from ldmprobe_core.study.layers import INPUT_CONTROLS
from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.schema import Study


def probe_cell(url: str, step: int, layer: str) -> dict[str, Any]:
    """Train and score all probes and controls of one layer at one step, and store the results.

    Args:
        url: URL of the run.
        step: sampler step (from 1).
        layer: name of the layer or input control.

    Returns:
        numbers of ``seconds`` taken and ``bytes`` read; both are 0 if the cell was complete
        already.

    Raises:
        RuntimeError: a batch is not labeled yet, or an accumulation unit is not complete yet.
    """
    run = Run(url)
    step_index, layer_index = step - 1, run.probe_inputs.index(layer)
    if run.progress.is_done(PROBE, step_index, layer_index):
        return {"seconds": 0.0, "bytes": 0}
    started = time.monotonic()
    study = run.study
    # The number of BLAS threads affects the last bits of sums, so each cell uses one thread.
    # Several cells run in parallel instead.
    threadpool_limits(1, user_api="blas")
    # Import here: summaries import this module, and torch takes seconds to load.
    import torch

    torch.set_num_threads(1)
    labels = cached_label_set(url, run.location.read_text("identity"))
    results, shape, bytes_read = _probe_networks(run, step, layer, labels)
    cell = {"step": slice(step_index, step_index + 1)}
    probes = _stored_probes(study, results["trained", "true"], shape)
    run.write(f"probes/{layer}", probes, **cell)
    at_layer = slice(layer_index, layer_index + 1)
    for prop in study.labels.maps:
        scores = _stored_scores(study, results, prop)
        arrays = {"score": scores}
        for condition in study.conditions:
            if condition.repeated and study.controls.enabled(condition.name):
                draws = results[condition.network, condition.assignment].draws[prop]
                arrays[f"{condition.name}_draws"] = draws[:, None, None, :]
        run.write(f"scores/{prop}", arrays, layer=at_layer, **cell)
    run.progress.mark_done(PROBE, step_index, layer_index)
    return {"seconds": time.monotonic() - started, "bytes": bytes_read}


def _probe_networks(
    run: Run, step: int, layer: str, labels: LabelSet
) -> tuple[dict[tuple[str, str], CellResult], tuple[int, int, int], int]:
    """Train and score the probes of one layer at one step, for each network that is probed.

    The networks are the model with its trained weights and, for a control, with permuted weights.

    Returns:
        results by network and label assignment, the shape of the activations of a sample, and the
        number of bytes read.
    """
    study = run.study
    results: dict[tuple[str, str], CellResult] = {}
    bytes_read, shape = 0, (0, 0, 0)
    for network in dict.fromkeys(
        c.network for c in study.conditions if study.controls.enabled(c.name)
    ):
        # The latents and the clean image are the same for every network, so they are probed only
        # once, with the trained network.
        if network != "trained" and layer in INPUT_CONTROLS:
            continue
        index, activations = read_cell(run, network, step, layer)
        bytes_read += activations.nbytes
        activations = probe_features(layer, activations)
        shape = activations.shape[1:]
        sums = unstored_statistics(run, network, step, layer)
        columns = study.label_columns(network)
        partial = len(index) < run.n_stored
        known = labels.subset(tuple(index.tolist())) if partial else labels
        cells = probe_activations(activations, known, study, columns, sums)
        if partial:
            rows = np.isin(labels.heldout, index)
            cells = {name: cell.spread(rows) for name, cell in cells.items()}
        results |= {(network, assignment): cell for assignment, cell in cells.items()}
    return results, shape, bytes_read


def read_cell(run: Run, network: str, step: int, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the activations of one layer at one step, for all samples with stored activations.

    Args:
        run: run with generated batches.
        network: ``trained`` or ``permuted``.
        step: sampler step (from 1).
        layer: name of the layer or input control.

    Returns:
        indices of the samples, (n,), and their activations (n, y, x, channel) as stored; all NaN
        if the control has no values at this step.
    """
    group = f"{ACTIVATION_GROUPS[network]}/{layer}"
    index, steps = samples_in(run, group), run.read(group, "step")
    row = np.flatnonzero(steps == step)
    if not len(row):
        stored = run.open(group).activation
        return index, np.full((len(index), *stored.shape[2:]), np.nan, stored.dtype)
    return index, run.read(group, "activation", step=int(row[0]))


def _stored_probes(
    study: Study, fitted: CellResult, shape: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """Convert the fitted linear probes of one layer at one step to the arrays of the store.

    Args:
        study: study that gives the kinds of linear probes and the properties, in order.
        fitted: probes fitted to the true labels of the trained network.
        shape: height and width in tokens, and number of channels, of the activations.

    Returns:
        ``weight`` (kind, property, step, channel), ``position`` (kind, property, step, y, x), and
        ``bias``, ``penalty`` and ``cut`` (kind, property, step), all float64 with one step; NaN for
        probes that were not fitted.
    """
    kinds, maps = study.linear_kinds, study.labels.maps
    weight = np.full((len(kinds), len(maps), 1, shape[2]), np.nan)
    position = np.full((len(kinds), len(maps), 1, shape[0], shape[1]), np.nan)
    bias = np.full((len(kinds), len(maps), 1), np.nan)
    penalty, cut = bias.copy(), bias.copy()
    for (kind, prop), probe in fitted.probes.items():
        # Store linear probes only.  Probes of other kinds have no weights per channel, so only
        # their scores are stored.
        if not (probe_kind(kind).linear and isinstance(probe, LinearProbe)):
            continue
        entry = kinds.index(kind), maps.index(prop), 0
        weight[entry], bias[entry], penalty[entry] = probe.weight, probe.bias, probe.penalty
        cut[entry] = probe.cut
        position[entry] = 0.0 if probe.position is None else probe.position
    stored = {"weight": weight, "position": position, "bias": bias}
    return stored | {"penalty": penalty, "cut": cut}


def _stored_scores(
    study: Study, results: dict[tuple[str, str], CellResult], prop: str
) -> np.ndarray:
    """Arrange the scores of one property at one layer and step as the array that the run stores.

    Returns:
        (condition, kind, metric, step, layer, sample), with one step and one layer; NaN for
        conditions that were not computed.
    """
    undefined = np.full_like(results["trained", "true"].scores[prop], np.nan)
    scores = [
        results[c.network, c.assignment].scores[prop]
        if study.controls.enabled(c.name) and (c.network, c.assignment) in results
        else undefined
        for c in study.conditions
    ]
    return np.stack(scores)[:, :, :, None, None, :]
