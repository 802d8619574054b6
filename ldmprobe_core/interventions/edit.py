"""Changing activations so that a linear probe reads a target: exactly, or by gradient descent.

A probe reads w . h + b off each token h.  The smallest change that makes it read t is along one
direction: in L2 it is (t - w . h - b) w / |w|^2 (the projection onto a hyperplane), and in the
activations' own covariance C, where a change d costs d' C^-1 d, it is
(t - w . h - b) C w / (w' C w): edits then stay where activations live.
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
    """The edit of one cell.

    Attributes:
        weight: (channel,) of the probe.
        bias: of the probe.
        step: (channel,), scaled so that ``weight . step`` is 1: a step of it raises the reading
            by one.
    """

    weight: Tensor
    bias: float
    step: Tensor

    @classmethod
    def of_probe(cls, probe: LinearProbe, covariance: np.ndarray | None = None) -> EditDirection:
        """The cheapest direction for a probe.

        Args:
            covariance: (channel, channel) of the activations; None measures changes in L2.

        Raises:
            ValueError: the probe reads nothing (its weights are 0), so no target can be reached.
        """
        raw = probe.weight if covariance is None else covariance @ probe.weight
        gain = float(probe.weight @ raw)
        if not gain > 0:
            raise ValueError("the probe's weights are zero: no change alters what it reads")
        return cls(
            torch.from_numpy(probe.weight).float(), probe.bias, torch.from_numpy(raw / gain).float()
        )

    def read(self, tokens: Tensor) -> Tensor:
        """What the probe reads, (n, y, x), of tokens (n, y, x, channel)."""
        return tokens @ self.weight + self.bias

    def exact(self, tokens: Tensor, target: Tensor, strength: float) -> Tensor:
        """Tokens changed the least, such that the reading goes ``strength`` of the way there.

        Args:
            tokens: (n, y, x, channel) float32.
            target: (n, y, x), what the probe is to read; NaN leaves a token as it is.
            strength: 0 changes nothing, 1 reaches the target.
        """
        gap = torch.nan_to_num(target - self.read(tokens))
        return tokens + (strength * gap)[..., None] * self.step


def target_reading(
    share: np.ndarray, kind: str, mask: bool, confidence: float = 0.98
) -> np.ndarray:
    """The prediction of a probe of this kind that means a given map.

    Args:
        share: block means of the target map, (n, y, x).
        kind: name of a probe kind.
        mask: the map is a mask.
        confidence: target probability inside the mask, and 1 - confidence outside, of kinds that
            predict logits.
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
    """The paper's edit: Adam on the activations themselves until the probe reads the target.

    Cross-entropy of the probe's prediction, upsampled to the image by nearest, with the target
    mask; Huber's loss with delta 1 for maps (Chen, Viégas & Wattenberg 2023, section 5 and their
    code).

    Args:
        tokens: (n, y, x, channel) float32.
        target: (n, Y, X) at the image's size: 0..1 for a mask, else values.
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
            # Each sample's own mean: a batch is edited as its samples would be alone.
            loss.mean((1, 2)).sum().backward()
            optimizer.step()
    return edited.detach()


def random_change_like(change: Tensor, generator: torch.Generator) -> Tensor:
    """A change of the same norm at every token, in a random direction.

    Args:
        change: (n, y, x, channel).
    """
    noise = torch.randn(change.shape, generator=generator).to(change)
    norm = change.norm(dim=-1, keepdim=True)
    return noise * norm / noise.norm(dim=-1, keepdim=True).clamp_min(1e-12)
