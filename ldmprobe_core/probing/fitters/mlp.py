"""Nonlinear probes with one hidden layer, a control that shows what linear probes miss.

The control is that of Chen, Viégas & Wattenberg (2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ldmprobe_core.probing.fitters.adam import ADAM_BATCH, ADAM_EPOCHS


@dataclass(frozen=True)
class MlpProbe:
    """Probe with one hidden layer: prediction = relu(activation . W + a) . v + b."""

    network: nn.Sequential

    @torch.no_grad()
    def predict(self, activations: np.ndarray) -> np.ndarray:
        """Predict maps (n, y, x) float64 from activations (n, y, x, channel); logits for masks."""
        parts = [self.network(torch.from_numpy(a.astype(np.float32)))[..., 0] for a in activations]
        return torch.stack(parts).double().numpy()


def fit_mlp(
    activations: np.ndarray,
    target: np.ndarray,
    mask: bool,
    seed: int = 0,
    epochs: int = ADAM_EPOCHS,
    batch: int = ADAM_BATCH,
    learning_rate: float = 1e-3,
    weight: np.ndarray | None = None,
) -> MlpProbe:
    """Fit a ReLU network with one hidden layer by Adam, as the code of Chen et al. (2023) does.

    The hidden layer has half as many units as the activations have channels (section 4 of the
    paper).

    For a mask, the loss is cross-entropy with the foreground share of each token, which has the
    same optimum as cross-entropy over pixels.  For other maps, it is Huber's loss with delta 1 on
    the block means.

    Args:
        activations: (n, y, x, channel).
        mask: whether the label is a mask.
        seed: seed of the initialisation and of the order of samples.
        batch: number of samples in a gradient step.
        target: block means of the labels, (n, y, x); NaN for tokens whose `weight` is 0.
        weight: weight of each token in the loss, (n, y, x); None weighs all tokens equally.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(activations.astype(np.float32))
    y = torch.from_numpy(np.nan_to_num(target).astype(np.float32))
    weights = None if weight is None else torch.from_numpy(weight.astype(np.float32))
    channels = x.shape[-1]
    inner, outer = nn.Linear(channels, channels // 2), nn.Linear(channels // 2, 1)
    for layer in (inner, outer):
        # Draw from the default distribution of torch.nn.Linear, but with a seeded generator, so
        # that repeated fits give the same probe.
        bound = layer.in_features**-0.5
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    network = nn.Sequential(inner, nn.ReLU(), outer)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch):
            output = network(x[index])[..., 0]
            reduction = "mean" if weights is None else "none"
            if mask:
                loss = F.binary_cross_entropy_with_logits(output, y[index], reduction=reduction)
            else:
                loss = F.huber_loss(output, y[index], reduction=reduction, delta=1.0)
            if weights is not None:
                loss = (loss * weights[index]).sum() / weights[index].sum().clamp_min(1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return MlpProbe(network.requires_grad_(False))
