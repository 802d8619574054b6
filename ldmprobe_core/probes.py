"""Linear probes, and the paper's protocol of fitting them by Adam.

A probe maps a token's channels to a property of the token's block of pixels.  Its prediction,
upsampled by nearest, is constant on the block; so squared error against the full-size map differs
from squared error against the block's mean label only by a factor and a constant, and
cross-entropy against the full-size mask equals cross-entropy against the block's foreground share.
Both fits are therefore exact on tokens, with as many rows fewer as a block has pixels.

Penalties are relative: an L2 penalty p means ``p x v``, v the mean variance of a channel over the
training tokens, in an objective that is a *mean* over pixels.  So one list serves every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

ROWS_AT_ONCE = 1 << 11


def serves(kind: str, prop: str) -> bool:
    """A kind of probe is fitted to this property: logistic to masks, the others to every map."""
    return kind != "logistic" or prop == "foreground"


def foreground_cut(kind: str) -> float:
    """Foreground is where a probe of this kind predicts more: half, of a share or as a logit."""
    return 0.5 if kind == "ridge" else 0.0


@dataclass(frozen=True)
class Probe:
    """prediction = activation . weight + bias.

    Attributes:
        weight: (channel,) float64.
        bias: scalar.
        penalty: the relative penalty it was fitted with; NaN where there is none.
    """

    weight: np.ndarray
    bias: float
    penalty: float

    def predict(self, activations: np.ndarray) -> np.ndarray:
        """Predictions (n, y, x) float64 from activations (n, y, x, channel)."""
        return predictions(activations, [self])[..., 0]


def predictions(activations: np.ndarray, probes: list[Probe]) -> np.ndarray:
    """Of several probes from one pass: (n, y, x, probe) float64 from (n, y, x, channel)."""
    weight = np.stack([probe.weight for probe in probes], axis=1)
    bias = np.array([probe.bias for probe in probes])
    rows = activations.reshape(-1, activations.shape[-1])
    found = np.concatenate([block @ weight for block in row_blocks(rows)]) + bias
    return found.reshape(*activations.shape[:-1], len(probes))


def fit_adam(
    activations: np.ndarray,
    target: np.ndarray,
    foreground: bool,
    seed: int = 0,
    epochs: int = 30,
    batch: int = 4,
    learning_rate: float = 1e-3,
) -> Probe:
    """The paper's protocol: one linear layer, nearest upsampling, Adam, full-size loss.

    Foreground: two logits without bias under cross-entropy; else one value under Huber's loss with
    delta 1 (Chen, Viegas & Wattenberg 2023, section 3 and their code).

    Args:
        activations: (n, y, x, channel).
        target: (n, Y, X), bool for foreground, else values.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(activations.astype(np.float32)).permute(0, 3, 1, 2)
    y = torch.from_numpy(target.astype(np.int64 if foreground else np.float32))
    channels = x.shape[1]
    bound = channels**-0.5  # torch.nn.Linear's own initialisation
    outputs = 2 if foreground else 1
    weight = torch.empty(outputs, channels).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
    parameters = [weight.requires_grad_()] + ([] if foreground else [bias.requires_grad_()])
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch):
            output = torch.einsum("ncyx,kc->nkyx", x[index], weight)
            if not foreground:
                output = output + bias[:, None, None]
            output = F.interpolate(output, size=tuple(y.shape[1:]), mode="nearest")
            if foreground:
                loss = F.cross_entropy(output, y[index])
            else:
                loss = F.huber_loss(output[:, 0], y[index], delta=1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    fitted = weight.detach().double().numpy()
    if foreground:
        return Probe(fitted[1] - fitted[0], 0.0, float("nan"))
    return Probe(fitted[0], float(bias.detach()), float("nan"))


def row_blocks(
    rows: np.ndarray, dtype: type[np.floating] | None = np.float64
) -> Iterator[np.ndarray]:
    """Rows as many at a time as a CPU's cache holds, in float64, float32, or at least float32."""
    for a in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[a : a + ROWS_AT_ONCE]
        if block.dtype == np.float16:  # torch converts it with the CPU's own instruction
            block = torch.from_numpy(np.ascontiguousarray(block)).float().numpy()
        yield block if dtype is None else block.astype(dtype, copy=False)
