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
        sums = unstored_statistics(run, network, step, layer)
        cells = probe_activations(activations, labels, study, study.assignments(network), sums)
        results |= {(network, assignment): cell for assignment, cell in cells.items()}

    kinds, maps = study.linear_kinds, study.labels.maps
    fitted = results["trained", "true"]
    weight = np.full((len(kinds), len(maps), 1, channels), np.nan)
    bias = np.full((len(kinds), len(maps), 1), np.nan)
    penalty = bias.copy()
    for (kind, prop), probe in fitted.probes.items():
        if not probe_kind(kind).linear:  # a control: scored, not stored
            continue
        assert isinstance(probe, LinearProbe)
        entry = kinds.index(kind), maps.index(prop), 0
        weight[entry], bias[entry], penalty[entry] = probe.weight, probe.bias, probe.penalty
    cell = {"step": slice(step_index, step_index + 1)}
    run.write(f"probes/{layer}", {"weight": weight, "bias": bias, "penalty": penalty}, **cell)
    for prop in maps:
        undefined = np.full_like(fitted.scores[prop], np.nan)
        scores = [
            results[c.network, c.assignment].scores[prop]
            if study.controls.enabled(c.name) and (c.network, c.assignment) in results
            else undefined
            for c in study.conditions
        ]
        run.write(
            f"scores/{prop}",
            {"score": np.stack(scores)[:, :, :, None, None, :]},
            layer=slice(layer_index, layer_index + 1),
            **cell,
        )
    run.progress.mark_done(PROBE, step_index, layer_index)
    return {"seconds": time.monotonic() - started, "bytes": bytes_read}
