"""Samples that a control covers, for controls computed on only some samples of a run.

The permuted denoiser runs on some batches, and few samples have step images.  A probe is compared
with such a control on the same test samples, and, where training activations are stored, it is
fitted again to the same training samples first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.batching import permuted_samples, step_image_samples
from ldmprobe_core.study.layers import CLEAN_PIXELS, INPUT_CONTROLS
from ldmprobe_core.study.splits import SPLITS


@dataclass(frozen=True)
class Coverage:
    """Samples on which one control was computed.

    Attributes:
        index: indices of the samples, (n,) ascending; not all of them need be stored.
        counts: number of them in each split.
        heldout: whether each held-out sample is among them, (held-out sample,) bool.
    """

    index: np.ndarray
    counts: dict[str, int]
    heldout: np.ndarray


def partial_coverage(run: Run, heldout: np.ndarray) -> dict[str, Coverage]:
    """Find the controls that were computed on only some samples, and list these samples.

    Args:
        run: run of the controls.
        heldout: indices of the held-out samples.

    Returns:
        samples by name of the control; a control of all samples is left out.
    """
    study, samples = run.study, run.samples
    index_of = {}
    if CLEAN_PIXELS in study.input_controls:
        index_of[CLEAN_PIXELS] = step_image_samples(study, samples)
    permuted = permuted_samples(study, samples)
    for condition in study.conditions:
        if condition.network == "permuted" and study.controls.enabled(condition.name):
            index_of[condition.name] = permuted
    covered = {}
    for name, index in index_of.items():
        if len(index) < len(samples):
            counts = Counter(samples[i].split for i in index)
            covered[name] = Coverage(
                index, {split: counts[split] for split in SPLITS}, np.isin(heldout, index)
            )
    return covered


def partial_inputs(run: Run, heldout: np.ndarray) -> dict[str, dict[str, int]]:
    """Count the samples of each split of input controls that cover only some, by name.

    Args:
        run: run of the controls.
        heldout: indices of the held-out samples.
    """
    covered = partial_coverage(run, heldout)
    return {name: part.counts for name, part in covered.items() if name in run.study.input_controls}


def count_undefined(
    scores: np.ndarray, steps: np.ndarray | None = None, coverage: Coverage | None = None
) -> int:
    """Count undefined scores among those that were to be computed.

    Args:
        scores: (kind, step, held-out sample).
        steps: indices of the steps (from 0) at which they were; None stands for all.
        coverage: samples of which they were; None stands for all.
    """
    known = scores if steps is None else scores[:, steps]
    known = known if coverage is None else known[..., coverage.heldout]
    return int(np.isnan(known).sum())


def input_control_steps(run: Run) -> dict[str, np.ndarray]:
    """Return the indices (from 0) of the steps at which input controls have values, by name."""
    return {
        name: run.read(f"activations/{name}", "step") - 1
        for name in run.probe_inputs
        if name in INPUT_CONTROLS
    }
