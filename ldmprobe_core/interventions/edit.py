"""Edits of activations that move a linear probe's prediction to a target.

A probe predicts w . h + b from the activation h of a token.  The smallest edit d after which the
probe predicts t depends on the norm of d.  In the L2 norm, it is d = (t - w . h - b) w / |w|^2, the
projection onto a hyperplane.  In the norm d' C^-1 d, where C is the covariance of the activations,
it is d = (t - w . h - b) C w / (w' C w).  This second edit changes the activations mostly in the
directions in which they vary anyway.

The alternative method is gradient descent on the activations, as in Chen, Viégas & Wattenberg
(2023).
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
    """Linear probe of one cell (a layer at a step), and the direction of edits in the cell.

    Attributes:
        weight: weight of the probe, (channel,) float32.
        bias: bias of the probe, with its position term if it has one: scalar or (y, x) float32.
        step: edit direction, (channel,) float32.  Adding it to a token raises the prediction by 1,
            that is, ``weight . step`` is 1.
    """

    weight: Tensor
    bias: Tensor
    step: Tensor

    @classmethod
    def of_probe(cls, probe: LinearProbe, covariance: np.ndarray | None = None) -> EditDirection:
        """Compute the direction of the edit with the least norm that changes a prediction by 1.

        Args:
            probe: linear probe of the cell.
            covariance: covariance of the activations, (channel, channel), which defines the norm of
                an edit; None uses the L2 norm.

        Raises:
            ValueError: the probe's weights are zero, so its prediction cannot be changed.
        """
        raw = probe.weight if covariance is None else covariance @ probe.weight
        gain = float(probe.weight @ raw)
        if not gain > 0:
            raise ValueError("probe: its weights are zero, so no edit changes its prediction")
        return cls(
            torch.from_numpy(probe.weight).float(),
            torch.as_tensor(probe.offset).float(),
            torch.from_numpy(raw / gain).float(),
        )

    def read(self, tokens: Tensor) -> Tensor:
        """Return the probe's predictions (n, y, x) for activations (n, y, x, channel)."""
        return tokens @ self.weight + self.bias

    def exact(self, tokens: Tensor, target: Tensor, strength: float) -> Tensor:
        """Move the predictions to the target, or a part of the way, by the least-norm edit.

        Args:
            tokens: activations (n, y, x, channel) float32.
            target: target predictions (n, y, x); a token whose target is NaN is not edited.
            strength: fraction, 0..1, of the difference between prediction and target that the edit
                removes.

        Returns:
            edited tokens, (n, y, x, channel) float32.
        """
        gap = torch.nan_to_num(target - self.read(tokens))
        return tokens + (strength * gap)[..., None] * self.step


def target_reading(
    share: np.ndarray, kind: str, mask: bool, confidence: float = 0.98
) -> np.ndarray:
    """Convert a target map to the predictions that a probe of `kind` should make after an edit.

    Args:
        share: block means of the target map, (n, y, x).
        kind: name of a probe kind.
        mask: whether the map is a mask.
        confidence: target probability inside the mask; outside, it is 1 - confidence.  Only kinds
            of probes that predict logits use it.

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
    """Edit activations as Chen et al. (2023) do, by gradient descent on the probe's loss.

    Adam minimises the loss between prediction and target map.  The probe stays fixed, and its
    prediction is upsampled to the image's size.  For a mask, the loss is cross-entropy; for other
    maps, it is Huber's with delta 1.  Both follow section 5 of Chen, Viégas & Wattenberg (2023) and
    their published code.

    Args:
        tokens: activations (n, y, x, channel) float32.
        target: target maps (n, Y, X) float32 at the image's size; 0..1 for a mask, else values.
        direction: edit direction of the cell; only its probe's weight and bias are used.
        mask: whether the target is a mask.
        iterations: number of gradient steps.
        learning_rate: learning rate of Adam.

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
            # Average over pixels but sum over samples, so that a sample's edit does not depend on
            # the batch size.
            loss.mean((1, 2)).sum().backward()
            optimizer.step()
    return edited.detach()


def random_change_like(change: Tensor, generator: torch.Generator) -> Tensor:
    """Draw random changes of activations that have the norm of `change` at every token.

    Args:
        change: changes of activations, (n, y, x, channel).
        generator: random number generator on the CPU.
    """
    noise = torch.randn(change.shape, generator=generator).to(change)
    norm = change.norm(dim=-1, keepdim=True)
    return noise * norm / noise.norm(dim=-1, keepdim=True).clamp_min(1e-12)
