"""Sums over tokens that a GPU computes: in float64, or in float32 products without rounding errors.

Devices without float64 (``mps``) multiply integers instead (error-free transformation, Ozaki et al.
2012, "Error-free transformations of matrix multiplication by using fast routines of matrix
multiplication and its applications", Numerical Algorithms 59).  Each column of a block of rows is
divided by a power of two and split into slices of 6 bits.  A product of two slices sums at most
2,048 products of integers up to 64, which float32 holds exactly in any order of summation, also if
the device rounds factors to TF32 or bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmprobe_core.probing.linear import ROWS_AT_ONCE

_FLOAT32_BITS = 24
_BITS = (_FLOAT32_BITS - (ROWS_AT_ONCE - 1).bit_length()) // 2
"""Bits of a slice: 2 x 6 of a product, and 11 of a sum of 2,048 products, are less than 24."""

_SLICES = 7
"""Number of slices, which hold 42 bits of the largest value of a column."""

DOUBLE_DEVICES = ("cuda", "cpu")
"""Types of devices that compute in float64."""

_ROWS_ON_DEVICE = 16_384
"""Number of tokens that a device adds at once: 170 MB in float64 for 1,280 channels."""


class DeviceSums:
    """Sums over tokens as in `SufficientStatistics`, computed by a device.

    Args:
        device: device of the products.
        exact_slices: whether to multiply slices in float32; None does so on devices without
            float64.
    """

    def __init__(self, device: torch.device, exact_slices: bool | None = None) -> None:
        self.device = device
        self.sliced = device.type not in DOUBLE_DEVICES if exact_slices is None else exact_slices

    def sums(
        self,
        x: np.ndarray,
        y: np.ndarray,
        root: np.ndarray | None,
        positions: np.ndarray | None,
        n_positions: int,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Sum the products and the rows at each position, in float64 on the device.

        Activations go to the device in their own data type, and are converted there: float16 takes
        a quarter of the time of float64 on the way, and the conversion is exact.

        Args:
            x: activations (token, channel), floating-point.
            y: labels (token, label).
            root: square root of the number of times that each token counts, float64 (token,);
                None counts each token once.
            positions: index of the position of each token, (token,); None omits the second result.
            n_positions: number of positions.

        Returns:
            the Gram matrix of the rows [activations, 1, labels], symmetric float64 (column,
            column), and the sums of the rows at each position, float64 (position, column).
        """
        channels, width = x.shape[1], x.shape[1] + 1 + y.shape[1]
        double: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        gram = torch.zeros((width, width), **double)
        by_position = torch.zeros((n_positions, width), **double)
        for start in range(0, len(x), _ROWS_ON_DEVICE):
            here = slice(start, start + _ROWS_ON_DEVICE)
            rows = torch.ones((len(x[here]), width), **double)
            rows[:, :channels] = self._moved(x[here])
            rows[:, channels + 1 :] = self._moved(y[here])
            factor = torch.ones(len(rows), **double)
            if root is not None:
                factor = self._moved(root[here])
                rows *= factor[:, None]
            gram += rows.T @ rows
            if positions is not None:
                # A product with a matrix of members adds in the same order each time, which adding
                # with atomic operations on a GPU does not.
                members = torch.zeros((n_positions, len(rows)), **double)
                token = torch.arange(len(rows), device=self.device)
                members[self._moved(positions[here]), token] = factor
                by_position += members @ rows
        total = gram.cpu().numpy()
        symmetric = np.tril(total) + np.tril(total, -1).T
        return symmetric, None if positions is None else by_position.cpu().numpy()

    def sliced_gram(self, rows: np.ndarray) -> np.ndarray:
        """Compute the Gram matrix of a block of rows from exact products, see `sliced_gram`."""
        return sliced_gram(rows, self.device)

    def _moved(self, values: np.ndarray) -> Tensor:
        """Copy an array to the device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def sliced_gram(rows: np.ndarray, device: torch.device) -> np.ndarray:
    """Compute the Gram matrix of rows from exact float32 products on a device.

    Entry (i, j) differs from the exact one by about 2^-42 times the number of rows and the largest
    absolute values of columns i and j at most.

    Args:
        rows: (row, column) float64, finite, at most `ROWS_AT_ONCE` rows.
        device: device of the products.

    Returns:
        float64 (column, column).
    """
    # The exponents make the largest absolute value of each column at most 1.
    exponents = np.frexp(np.abs(rows).max(0, initial=0))[1]
    rest, parts = np.ldexp(rows, -exponents), []
    for _ in range(_SLICES):
        rest = np.ldexp(rest, _BITS)
        integers = np.rint(rest)
        rest -= integers
        parts.append(torch.from_numpy(integers.astype(np.float32)).to(device))
    high = torch.zeros((rows.shape[1],) * 2, device=device)
    low = torch.zeros_like(high)
    for left in range(_SLICES):
        # Products of two small slices are below the bits that the slices hold.
        for right in range(left, _SLICES - left):
            product = parts[left].T @ parts[right]
            if left != right:
                # Below 2^24, so that this sum of two integers is exact.
                product = product + product.T
            high, error = _two_sum(high, product * 2.0 ** (-_BITS * (left + right + 2)))
            low = low + error
    gram = high.cpu().numpy().astype(np.float64) + low.cpu().numpy()
    return np.ldexp(gram, exponents[:, None] + exponents[None, :])


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum of two tensors, and its rounding error (Knuth's algorithm)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)
