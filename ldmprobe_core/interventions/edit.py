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

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.study.probe_kinds import probe_kind


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of the training activations of one layer at one step.

    Attributes:
        mean: (channel,) float64.
        covariance: (channel, channel) float64.
    """

    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class EditDirection:
    """Linear probe of one cell (a layer at a step), and the directions of edits in the cell.

    Attributes:
        weight: weight of the probe, (channel,) float32.
        bias: bias of the probe, with its position term if it has one: scalar or (y, x) float32.
        step: edit direction, (channel,) float32.  Adding it to a token raises the prediction by 1,
            that is, ``weight . step`` is 1.
        mean: prediction for the mean training activation, scalar or (y, x) float32.
        deviation: standard deviation of ``weight . h`` over the training activations h; NaN if
            their covariance is not known.
        nulls: directions of null edits by name, (draw, channel) float32 of norm 1.
    """

    weight: Tensor
    bias: Tensor
    step: Tensor
    mean: Tensor
    deviation: float = float("nan")
    nulls: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_probe(
        cls,
        probe: LinearProbe,
        moments: Moments | None = None,
        metric: str = "covariance",
        nulls: dict[str, np.ndarray] | None = None,
    ) -> EditDirection:
        """Compute the direction of the edit with the least norm that changes a prediction by 1.

        Args:
            probe: linear probe of the cell.
            moments: mean and covariance of the training activations; None uses the L2 norm and a
                mean activation of zero.
            metric: norm of an edit: ``covariance`` (that of the moments' inverse covariance) or
                ``l2``.
            nulls: directions of null edits by name, (draw, channel), of any norm.

        Raises:
            ValueError: the probe's weights are zero or its prediction is the same for all training
                activations, so an edit has no size; or a direction is not finite, or is zero.
        """
        offset = np.asarray(probe.offset)
        if moments is None:
            raw, mean, deviation = probe.weight, offset, float("nan")
        else:
            spread = moments.covariance @ probe.weight
            raw = spread if metric == "covariance" else probe.weight
            mean = offset + probe.weight @ moments.mean
            deviation = float(np.sqrt(max(probe.weight @ spread, 0.0)))
        gain = float(probe.weight @ raw)
        if gain <= 0:
            raise ValueError("probe: its weights are zero, so no edit changes its prediction")
        with np.errstate(all="ignore"):
            step = raw / gain
        tensors = [torch.as_tensor(v).float() for v in (probe.weight, offset, step, mean)]
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
        if not finite or (moments is not None and not np.isfinite(deviation)):
            raise ValueError("probe: its weights, or the activations' moments, are not finite")
        if moments is not None:
            # Treat the prediction as constant if its variance may be rounding error, which is about
            # 1e-16 times the product of the mean squared norm of the activations and that of the
            # weights.
            square = np.trace(moments.covariance) + moments.mean @ moments.mean
            if deviation**2 <= 1e-14 * square * (probe.weight @ probe.weight):
                raise ValueError("probe: its prediction is the same for all training activations")
        weight, bias, unit_step, mean_prediction = tensors
        unit_nulls = {name: _unit_vectors(name, vectors) for name, vectors in (nulls or {}).items()}
        return cls(weight, bias, unit_step, mean_prediction, deviation, unit_nulls)

    def to(self, device: torch.device) -> EditDirection:
        """Return a copy whose tensors are on a device."""
        return EditDirection(
            self.weight.to(device), self.bias.to(device), self.step.to(device),
            self.mean.to(device), self.deviation,
            {name: vectors.to(device) for name, vectors in self.nulls.items()},
        )  # fmt: skip

    def read(self, tokens: Tensor) -> Tensor:
        """Return the probe's predictions (n, y, x) for activations (n, y, x, channel)."""
        return tokens @ self.weight + self.bias

    def exact(self, tokens: Tensor, target: Tensor, strength: float) -> Tensor:
        """Apply the least-norm edit that moves predictions all or part of the way to the target.

        Args:
            tokens: activations (n, y, x, channel) float32.
            target: target predictions (n, y, x); a token whose target is NaN is not edited.
            strength: fraction, 0..1, of the difference between prediction and target that the edit
                removes.

        Returns:
            edited tokens, (n, y, x, channel) float32.
        """
        gap = torch.where(target.isnan(), 0.0, target - self.read(tokens))
        return tokens + (strength * gap)[..., None] * self.step

    def at_dose(self, target: Tensor, dose: float) -> Tensor:
        """Scale each sample's target predictions about the mean prediction to a given dose.

        Args:
            target: target predictions (n, y, x).
            dose: root mean square over the tokens of a sample of the difference between target and
                mean prediction, in standard deviations of the prediction.

        Returns:
            (n, y, x): ``mean + factor (target - mean)``, with one factor for each sample.
        """
        contrast = target - self.mean
        size = contrast.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
        return self.mean + contrast * (dose * self.deviation / size)

    def field_of(self, change: Tensor) -> Tensor:
        """Return the field of an edit: the signed norm of the change of each token, (n, y, x).

        The sign is that of the change of the probe's prediction.

        Args:
            change: change of the activations, (n, y, x, channel).
        """
        return torch.sign(change @ self.weight) * change.norm(dim=-1)

    def null_change(self, field: Tensor, null: str, samples: list[int]) -> Tensor:
        """Compute the change (n, y, x, channel) that a null edit adds to activations.

        Args:
            field: field of the edit that the null edit is compared with, (n, y, x).
            null: name of directions in `null_directions`.
            samples: indices of the samples, which determine the direction of each.
        """
        directions = self.nulls[null]
        chosen = directions[[sample % len(directions) for sample in samples]]
        return field[..., None] * chosen[:, None, None]


def _unit_vectors(null: str, vectors: np.ndarray) -> Tensor:
    """Scale the directions of a null edit, (draw, channel), to norm 1.

    Raises:
        ValueError: a direction is zero or not finite.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ValueError(f"null edit {null}: a direction is zero or not finite")
    return torch.from_numpy(vectors / norms).float()


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
