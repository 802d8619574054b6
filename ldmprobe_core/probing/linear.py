"""Linear probes, which predict a property from the channels of each token.

A token stands for a block of pixels, and the upsampled prediction is constant on that block.  Two
identities follow.  The squared error against the full-size map equals, up to a factor and a
constant, the squared error against the block means of the map.  The cross-entropy against a
full-size mask equals the cross-entropy against the foreground share of each block.  A fit with one
row for each token is therefore exact, and needs no row for each pixel.

L2 penalties are relative: a penalty p stands for ``p x v`` in an objective that is a mean over
pixels, where v is the mean variance of a channel over the training tokens.  The same list of
penalties therefore suits every layer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldmprobe_core.errors import UserError

ROWS_AT_ONCE = 1 << 11
"""Number of rows that are converted and multiplied together; few enough for a CPU's cache."""


@dataclass(frozen=True)
class LinearProbe:
    """Linear probe: prediction = activation . weight + bias, plus a position term if it has one.

    Attributes:
        weight: (channel,) float64.
        bias: scalar, in the label's units (logits for logistic and Adam probes of masks).
        penalty: relative L2 penalty of the fit; NaN for kinds without one.
        cut: value above which the prediction of a mask counts as foreground; NaN for other
            properties.
        position: position term of each token (y, x) float64, in the units of the bias; None for
            kinds without one (`ldmprobe_core.probing.position`).
    """

    weight: np.ndarray
    bias: float
    penalty: float
    cut: float = float("nan")
    position: np.ndarray | None = None

    @classmethod
    def from_dataset(cls, stored: Any) -> LinearProbe:
        """Read a linear probe from the stored arrays of a run.

        Args:
            stored: xarray dataset of ``probes/<layer>`` at one kind, property and step.
        """
        position = stored.position.values.astype(np.float64)
        return cls(
            stored.weight.values.astype(np.float64),
            float(stored.bias),
            float(stored.penalty),
            float(stored.cut),
            position if position.any() else None,
        )

    @property
    def offset(self) -> float | np.ndarray:
        """Bias plus position term: a scalar, or (y, x) float64 for a probe with the term."""
        return self.bias if self.position is None else self.bias + self.position

    def predict(self, activations: np.ndarray) -> np.ndarray:
        """Predict a property (n, y, x) float64 from activations (n, y, x, channel).

        Args:
            activations: values of the probe's layer; a `DataArray` may have another order of the
                dimensions sample, y, x and channel.

        Raises:
            UserError: they have another number of dimensions, channels or tokens.
        """
        named = ("sample", "y", "x", "channel")
        given: Any = activations
        if set(getattr(given, "dims", ())) == set(named):
            given = given.transpose(*named)
        values = np.asarray(given)
        grid = values.shape[1:3] if self.position is None else self.position.shape
        if values.ndim != 4 or values.shape[1:] != (*grid, len(self.weight)):
            tokens = "y, x" if self.position is None else ", ".join(map(str, grid))
            raise UserError(
                f"activations: the probe does not take their shape ({values.shape}). Fix: give "
                f"those of its layer at one step, (n, {tokens}, {len(self.weight)})"
            )
        return predictions(values, [self])[..., 0]


def predictions(activations: np.ndarray, probes: list[LinearProbe]) -> np.ndarray:
    """Predict with several linear probes in one pass over the tokens.

    Args:
        activations: (n, y, x, channel), any floating dtype.
        probes: probes of the same layer.

    Returns:
        (n, y, x, probe) float64.
    """
    weight = np.stack([probe.weight for probe in probes], axis=1)
    rows = activations.reshape(-1, activations.shape[-1])
    # The first, empty part serves activations of no samples.
    values = np.concatenate([np.empty((0, len(probes))), *(b @ weight for b in row_blocks(rows))])
    values = values.reshape(*activations.shape[:-1], len(probes))
    shape = activations.shape[1:3]
    values += np.stack([np.broadcast_to(probe.offset, shape) for probe in probes], axis=-1)
    return values


def finite_samples(activations: np.ndarray) -> np.ndarray:
    """Mark the samples whose activations are all finite, (sample,) bool.

    Args:
        activations: (sample, ...), any floating dtype.
    """
    rows = activations.reshape(len(activations), -1)
    if rows.dtype == np.float16:
        # The exponent bits of infinities and NaN are all set.  NumPy tests float16 values one by
        # one, and integers many at a time.
        return np.asarray(((rows.view(np.uint16) & 0x7C00) != 0x7C00).all(1))
    return np.asarray(np.isfinite(rows).all(1))


def row_blocks(
    rows: np.ndarray, dtype: type[np.floating] | None = np.float64
) -> Iterator[np.ndarray]:
    """Yield consecutive blocks of `ROWS_AT_ONCE` rows, converted to a dtype.

    Args:
        rows: matrix (row, column).
        dtype: float64 or float32; None keeps the dtype of the rows, except that float16 becomes
            float32.
    """
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE]
        if block.dtype == np.float16 and (dtype != np.float64 or "torch" in sys.modules):
            block = _as_float32(block)
        yield block if dtype is None else block.astype(dtype, copy=False)


def _as_float32(block: np.ndarray) -> np.ndarray:
    """Convert float16 values to float32, which is exact."""
    # Torch converts several times faster than NumPy, but takes seconds to load.  It is used only if
    # the process has loaded it already, as processes that generate images or fit probes have.
    torch = sys.modules.get("torch")
    if torch is None:
        return block.astype(np.float32)
    converted: np.ndarray = torch.from_numpy(np.ascontiguousarray(block)).float().numpy()
    return converted
