"""Training and scoring of every probe and control of one cell."""

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
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.probe_kinds import probe_kind


def probe_cell(url: str, step: int, layer: str) -> dict[str, Any]:
    """Train and score every probe and control of one cell.

    Args:
        step: from 1.

    Returns:
        seconds and bytes read; zero if the cell was done before.
    """
    run = Run(url)
    step_index, layer_index = step - 1, run.probe_inputs.index(layer)
    if run.progress.is_done(PROBE, step_index, layer_index):
        return {"seconds": 0.0, "bytes": 0}
    started = time.monotonic()
    study = run.study
    # The number of BLAS threads changes the last bits of sums; cells run side by side instead.
    threadpool_limits(1, user_api="blas")
    torch.set_num_threads(1)
    labels = cached_label_set(url, run.location.read_text("identity"))
    results: dict[tuple[str, str], CellResult] = {}  # by network and label assignment
    bytes_read = channels = 0
    for network in dict.fromkeys(
        c.network for c in study.conditions if study.controls.enabled(c.name)
    ):
        if network != "trained" and layer == LATENTS:  # the input is the same for every network
            continue
        group = f"{ACTIVATION_GROUPS[network]}/{layer}"
        activations = run.read(group, "activation", step=step_index)
        bytes_read += activations.nbytes
        channels = activations.shape[-1]
        statistics = unstored_statistics(run, network, step, layer)
        cells = probe_activations(
            activations, labels, study, study.assignments(network), statistics
        )
        results |= {(network, assignment): cell for assignment, cell in cells.items()}
    _write_probes(run, step_index, layer, channels, results["trained", "true"])
    _write_scores(run, step_index, layer_index, results)
    run.progress.mark_done(PROBE, step_index, layer_index)
    return {"seconds": time.monotonic() - started, "bytes": bytes_read}


def _write_probes(run: Run, step_index: int, layer: str, channels: int, fitted: CellResult) -> None:
    """Store weights and biases of the linear probes of one cell; NaN where none was fitted."""
    kinds, maps = run.study.linear_kinds, run.study.labels.maps
    weight = np.full((len(kinds), len(maps), 1, channels), np.nan)
    bias = np.full((len(kinds), len(maps), 1), np.nan)
    penalty = bias.copy()
    for (kind, prop), probe in fitted.probes.items():
        if not probe_kind(kind).linear:  # nonlinear probes are controls, of which only scores count
            continue
        assert isinstance(probe, LinearProbe)
        entry = kinds.index(kind), maps.index(prop), 0
        weight[entry], bias[entry], penalty[entry] = probe.weight, probe.bias, probe.penalty
    run.write(
        f"probes/{layer}",
        {"weight": weight, "bias": bias, "penalty": penalty},
        step=slice(step_index, step_index + 1),
    )


def _write_scores(
    run: Run, step_index: int, layer_index: int, results: dict[tuple[str, str], CellResult]
) -> None:
    """Store the scores of one cell by condition; NaN where a condition is off or has no result.

    Args:
        results: by network and label assignment.
    """
    study = run.study
    for prop in study.labels.maps:
        undefined = np.full_like(results["trained", "true"].scores[prop], np.nan)
        scores = [
            results[c.network, c.assignment].scores[prop]
            if study.controls.enabled(c.name) and (c.network, c.assignment) in results
            else undefined
            for c in study.conditions
        ]
        run.write(
            f"scores/{prop}",
            {"score": np.stack(scores)[:, :, :, None, None, :]},
            step=slice(step_index, step_index + 1),
            layer=slice(layer_index, layer_index + 1),
        )
