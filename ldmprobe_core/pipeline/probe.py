"""Computation of one probing unit: all probes and controls of one cell (step and layer)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ldmprobe_core.pipeline.activation_sinks import ACTIVATION_GROUPS
from ldmprobe_core.pipeline.labels import cached_label_set
from ldmprobe_core.pipeline.statistics import unstored_statistics
from ldmprobe_core.probing.cell import CellResult, probe_activations
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.schema import Study


def probe_cell(url: str, step: int, layer: str) -> dict[str, Any]:
    """Train and score all probes and controls of one cell, and write the results to the run.

    Args:
        url: URL of the run.
        step: sampler step (from 1).
        layer: name of the layer, or of the latents.

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
    torch.set_num_threads(1)
    labels = cached_label_set(url, run.location.read_text("identity"))
    results, channels, bytes_read = _probe_networks(run, step, layer, labels)
    cell = {"step": slice(step_index, step_index + 1)}
    probes = _stored_probes(study, results["trained", "true"], channels)
    run.write(f"probes/{layer}", probes, **cell)
    at_layer = slice(layer_index, layer_index + 1)
    for prop in study.labels.maps:
        scores = _stored_scores(study, results, prop)
        run.write(f"scores/{prop}", {"score": scores}, layer=at_layer, **cell)
    run.progress.mark_done(PROBE, step_index, layer_index)
    return {"seconds": time.monotonic() - started, "bytes": bytes_read}


def _probe_networks(
    run: Run, step: int, layer: str, labels: LabelSet
) -> tuple[dict[tuple[str, str], CellResult], int, int]:
    """Train and score the probes of one cell, for each network whose activations are probed.

    The networks are the model with its trained weights and, for a control, with permuted weights.

    Returns:
        results by network and label assignment, the number of channels of the activations, and the
        number of bytes read.
    """
    study = run.study
    results: dict[tuple[str, str], CellResult] = {}
    bytes_read = channels = 0
    for network in dict.fromkeys(
        c.network for c in study.conditions if study.controls.enabled(c.name)
    ):
        # The latents before a step do not depend on the network's weights, so probes of latents are
        # fitted for one network only.
        if network != "trained" and layer == LATENTS:
            continue
        activations = run.read(f"{ACTIVATION_GROUPS[network]}/{layer}", "activation", step=step - 1)
        bytes_read += activations.nbytes
        channels = activations.shape[-1]
        sums = unstored_statistics(run, network, step, layer)
        cells = probe_activations(activations, labels, study, study.assignments(network), sums)
        results |= {(network, assignment): cell for assignment, cell in cells.items()}
    return results, channels, bytes_read


def _stored_probes(study: Study, fitted: CellResult, channels: int) -> dict[str, np.ndarray]:
    """Stack the weights of one cell's linear probes into the arrays that the run stores.

    Args:
        study: study that gives the kinds of linear probes and the properties, in order.
        fitted: probes fitted to the true labels of the trained network.
        channels: number of channels of the activations.

    Returns:
        ``weight`` (kind, property, step, channel), ``bias`` and ``penalty`` (kind, property, step),
        all float64 with one step; NaN for probes that were not fitted.
    """
    kinds, maps = study.linear_kinds, study.labels.maps
    weight = np.full((len(kinds), len(maps), 1, channels), np.nan)
    bias = np.full((len(kinds), len(maps), 1), np.nan)
    penalty, cut = bias.copy(), bias.copy()
    for (kind, prop), probe in fitted.probes.items():
        # Only linear probes are stored.  Other kinds have no weights per channel, just scores.
        if not (probe_kind(kind).linear and isinstance(probe, LinearProbe)):
            continue
        entry = kinds.index(kind), maps.index(prop), 0
        weight[entry], bias[entry], penalty[entry] = probe.weight, probe.bias, probe.penalty
        cut[entry] = probe.cut
    return {"weight": weight, "bias": bias, "penalty": penalty, "cut": cut}


def _stored_scores(
    study: Study, results: dict[tuple[str, str], CellResult], prop: str
) -> np.ndarray:
    """Stack one property's scores of a cell into the array that the run stores.

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
