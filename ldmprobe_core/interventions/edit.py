"""Edits of activations that move a linear probe's prediction to a target.

A probe predicts w . h + b from each token h.  The smallest edit after which it predicts t is along
one direction: in the L2 norm it is (t - w . h - b) w / |w|^2 (the projection onto a hyperplane).
In the norm d' C^-1 d of an edit d, with C the covariance of the activations, it is
(t - w . h - b) C w / (w' C w); such an edit stays within the distribution of activations.
The alternative is the paper's gradient descent on the activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.study.probe_kinds import probe_kind


@dataclass(frozen=True)
class EditDirection:
    """Probe of one cell, with the direction in which its activations are edited.

    Attributes:
        weight: weight of the probe, (channel,) float32.
        bias: bias of the probe.
        step: edit direction, (channel,) float32, scaled so that ``weight . step`` is 1: adding it
            to a token raises the probe's prediction by 1.
    """

    weight: Tensor
    bias: float
    step: Tensor

    @classmethod
    def of_probe(cls, probe: LinearProbe, covariance: np.ndarray | None = None) -> EditDirection:
        """Direction of the smallest edit for a probe.

        Args:
            covariance: covariance of the activations, (channel, channel), which defines the norm of
                an edit; None uses the L2 norm.

        Raises:
            ValueError: the probe's weights are zero, so its prediction cannot be changed.
        """
        raw = probe.weight if covariance is None else covariance @ probe.weight
        gain = float(probe.weight @ raw)
        if not gain > 0:
            raise ValueError("the probe's weights are zero, so no edit changes its prediction")
        return cls(
            torch.from_numpy(probe.weight).float(), probe.bias, torch.from_numpy(raw / gain).float()
        )

    def read(self, tokens: Tensor) -> Tensor:
        """Predictions (n, y, x) of the probe from tokens (n, y, x, channel)."""
        return tokens @ self.weight + self.bias

    def exact(self, tokens: Tensor, target: Tensor, strength: float) -> Tensor:
        """Tokens after the smallest edit that moves the prediction towards the target.

        Args:
            tokens: (n, y, x, channel) float32.
            target: target prediction (n, y, x); a token whose target is NaN is not edited.
            strength: fraction of the gap to the target that is closed, 0..1.
        """
        gap = torch.nan_to_num(target - self.read(tokens))
        return tokens + (strength * gap)[..., None] * self.step


def target_reading(
    share: np.ndarray, kind: str, mask: bool, confidence: float = 0.98
) -> np.ndarray:
    """Convert a target map to the prediction that stands for it in a probe of this kind.

    Args:
        share: block means of the target map, (n, y, x).
        kind: name of a probe kind.
        mask: whether the map is a mask.
        confidence: target probability inside the mask, 1 - confidence outside; used by kinds that
            predict logits.

    Returns:
        (n, y, x): logits for masks if the kind predicts logits, else `share`.
    """
    if mask and probe_kind(kind).mask_output == "logit":
        clipped = np.clip(share, 1 - confidence, confidence)
        return np.log(clipped / (1 - clipped))
    return share


def edit_by_gradient_descent(
    tokens: Tensor,
    target: Tensor,
    direction: EditDirection,
    mask: bool,
    iterations: int = 128,
    learning_rate: float = 5e-3,
) -> Tensor:
    """Edit activations by the paper's method: Adam on the activations, at fixed probe weights.

    The probe's prediction is upsampled to the image by nearest.  The loss is cross-entropy with a
    target mask, and Huber's with delta 1 for other maps (Chen, Viégas & Wattenberg 2023, section 5
    and their code).

    Args:
        tokens: (n, y, x, channel) float32.
        target: (n, Y, X) float32 at the image's size: 0..1 for a mask, else values.
        direction: holds the probe's weight and bias.
        mask: whether the target is a mask.
        iterations: number of gradient steps.

    Returns:
        edited tokens, (n, y, x, channel) float32.
    """
    edited = tokens.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([edited], lr=learning_rate)
    size = (target.shape[1], target.shape[2])
    with torch.enable_grad():
        for _ in range(iterations):
            reading = F.interpolate(direction.read(edited)[:, None], size, mode="nearest")[:, 0]
            if mask:
                loss = F.binary_cross_entropy_with_logits(reading, target, reduction="none")
            else:
                loss = F.huber_loss(reading, target, reduction="none", delta=1.0)
            optimizer.zero_grad()
            # The mean is per sample, so that an edit does not depend on the batch size.
            loss.mean((1, 2)).sum().backward()
            optimizer.step()
    return edited.detach()


def random_change_like(change: Tensor, generator: torch.Generator) -> Tensor:
    """Random directions with the norm of `change` at every token.

    Args:
        change: (n, y, x, channel).
        generator: CPU generator of the random directions.
    """
    noise = torch.randn(change.shape, generator=generator).to(change)
    norm = change.norm(dim=-1, keepdim=True)
    return noise * norm / noise.norm(dim=-1, keepdim=True).clamp_min(1e-12)
