"""Transfer of probes between steps: scores of each step's probe on the activations of all steps."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.analysis.generalization.records import TransferRecord, to_matrix
from ldmprobe_core.analysis.generalization.refits import TestScorer
from ldmprobe_core.probing.linear import LinearProbe, finite_samples, predictions


class TransferMatrix:
    """Transfer matrix of one property; each call of `add` fills the column of one step.

    Args:
        probes: probe of each step, in order, all of the same layer and kind.
        scorer: scorer of the property on the test samples.
    """

    def __init__(self, probes: list[LinearProbe], scorer: TestScorer) -> None:
        steps = len(probes)
        self.probes, self.scorer = probes, scorer
        self.means = np.full((len(scorer.metrics), steps, steps), np.nan)
        self.deviations = np.full((steps, len(probes[0].weight)), np.nan)

    def add(self, step: int, activations: np.ndarray) -> None:
        """Score all probes on the test samples' activations of one step.

        Args:
            step: step of the activations, from 0.
            activations: (test sample, y, x, channel) as stored.
        """
        finite = finite_samples(activations)
        if not finite.any():
            return
        rows = activations[finite].reshape(-1, activations.shape[-1])
        self.deviations[step] = rows.std(0, dtype=np.float64)
        predicted = np.full((*activations.shape[:3], len(self.probes)), np.nan)
        predicted[finite] = predictions(activations[finite], self.probes)
        for i, probe in enumerate(self.probes):
            # For properties other than masks, the threshold `cut` is NaN, and has no effect.
            scores = self.scorer.scores(predicted[..., i], probe.cut)
            defined = np.isfinite(scores)
            for row, values, use in zip(self.means, scores, defined, strict=True):
                row[i, step] = values[use].mean() if use.any() else np.nan

    def to_record(self) -> TransferRecord:
        """Build the record of the transfer matrix; call this after `add` received all steps."""
        weights = np.stack([probe.weight for probe in self.probes])
        has_partial = len(self.means) > 1
        return TransferRecord(
            metric=self.scorer.metrics[0],
            score=to_matrix(self.means[0].tolist()),
            partial=to_matrix(self.means[1].tolist()) if has_partial else None,
            cosine=to_matrix(weight_cosines(weights, self.deviations).tolist()),
        )


def weight_cosines(weights: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Cosines between the steps' probe weights, each scaled by its channel's standard deviation.

    Args:
        weights: weights of each step's probe, (step, channel).
        deviations: standard deviation of each channel at each step, (step, channel).

    Returns:
        (step, step) float64, -1..1; NaN for a probe without weights or with weights of zero.
    """
    scaled = weights * deviations
    norm = np.sqrt(np.square(scaled).sum(1, keepdims=True))
    unit = scaled / np.where(norm > 0, norm, np.nan)
    return np.clip(unit @ unit.T, -1, 1)
