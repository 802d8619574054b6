"""Training and scoring of every probe and control of one cell."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ldmprobe_core.pipeline.labels import cached_label_set
from ldmprobe_core.pipeline.statistics import unstored_statistics
from ldmprobe_core.probing.cell import probe_activations
from ldmprobe_core.probing.fitters.mlp import MlpProbe
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE
from ldmprobe_core.study.layers import LATENTS


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
    activations = run.read(f"activations/{layer}", "activation", step=step_index)
    bytes_read = activations.nbytes
    assignments = ("true", "shuffled") if study.controls.shuffled_labels else ("true",)
    results = probe_activations(
        activations, labels, study, assignments, unstored_statistics(run, "trained", step, layer)
    )
    if study.controls.permuted_weights and layer != LATENTS:
        permuted = run.read(f"activations_permuted/{layer}", "activation", step=step_index)
        bytes_read += permuted.nbytes
        sums = unstored_statistics(run, "permuted", step, layer)
        results["permuted"] = probe_activations(permuted, labels, study, sums=sums)["true"]

    channels = activations.shape[-1]
    kinds, maps = study.probes.kinds, study.labels.maps
    weight = np.full((len(kinds), len(maps), 1, channels), np.nan)
    bias = np.full((len(kinds), len(maps), 1), np.nan)
    penalty = bias.copy()
    for (kind, prop), probe in results["true"].probes.items():
        if isinstance(probe, MlpProbe):  # a control: scored, not kept
            continue
        position = kinds.index(kind), maps.index(prop), 0
        weight[position], bias[position], penalty[position] = (
            probe.weight,
            probe.bias,
            probe.penalty,
        )
    cell = {"step": slice(step_index, step_index + 1)}
    run.write(f"probes/{layer}", {"weight": weight, "bias": bias, "penalty": penalty}, **cell)
    undefined = {
        prop: np.full_like(score, np.nan) for prop, score in results["true"].scores.items()
    }
    for prop in maps:
        scores = [
            results[name].scores[prop] if name in results else undefined[prop]
            for name in ("true", "shuffled", "permuted")
        ]
        run.write(
            f"scores/{prop}",
            {"score": np.stack(scores)[:, :, :, None, None, :]},
            layer=slice(layer_index, layer_index + 1),
            **cell,
        )
    run.progress.mark_done(PROBE, step_index, layer_index)
    return {"seconds": time.monotonic() - started, "bytes": bytes_read}
