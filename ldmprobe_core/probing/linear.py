"""Linear probes on tokens.

A probe maps a token's channels to a property of the token's block of pixels.  Its prediction,
upsampled by nearest, is constant on the block; so squared error against the full-size map differs
from squared error against the block's mean label only by a factor and a constant, and
cross-entropy against the full-size mask equals cross-entropy against the block's foreground share.
Both fits are therefore exact on tokens: one row a block instead of one row a pixel.

Penalties are relative: an L2 penalty p means ``p x v``, with v the mean variance of a channel over
the training tokens, in an objective that is a *mean* over pixels.  So one list of penalties suits
every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

ROWS_AT_ONCE = 1 << 11
"""Rows a block: converted and multiplied together, few enough for a CPU's cache."""


@dataclass(frozen=True)
class LinearProbe:
    """Linear probe: prediction = activation . weight + bias.

    Attributes:
        weight: (channel,) float64.
        bias: scalar, in the label's units (logits for logistic and Adam probes of masks).
        penalty: relative L2 penalty of the fit; NaN for kinds without one.
    """

    weight: np.ndarray
    bias: float
    penalty: float

    def predict(self, activations: np.ndarray) -> np.ndarray:
        """Predictions (n, y, x) float64 from activations (n, y, x, channel)."""
        return predictions(activations, [self])[..., 0]


def predictions(activations: np.ndarray, probes: list[LinearProbe]) -> np.ndarray:
    """Predictions of several probes from one pass over the tokens.

    Args:
        activations: (n, y, x, channel), any floating dtype.

    Returns:
        (n, y, x, probe) float64.
    """
    weight = np.stack([probe.weight for probe in probes], axis=1)
    bias = np.array([probe.bias for probe in probes])
    rows = activations.reshape(-1, activations.shape[-1])
    values = np.concatenate([block @ weight for block in row_blocks(rows)]) + bias
    return values.reshape(*activations.shape[:-1], len(probes))


def row_blocks(
    rows: np.ndarray, dtype: type[np.floating] | None = np.float64
) -> Iterator[np.ndarray]:
    """Blocks of `ROWS_AT_ONCE` rows, converted to a dtype.

    Args:
        rows: (row, column).
        dtype: float64 or float32; None keeps each block's own, but converts float16 to float32.
    """
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE]
        if block.dtype == np.float16:  # torch converts float16 several times faster than numpy
            block = torch.from_numpy(np.ascontiguousarray(block)).float().numpy()
        yield block if dtype is None else block.astype(dtype, copy=False)
