"""Gram matrices that a GPU computes: in float64, or in float32 products without rounding errors.

Devices without float64 (``mps``) multiply integers instead (error-free transformation, Ozaki et al.
2012, "Error-free transformations of matrix multiplication by using fast routines of matrix
multiplication and its applications", Numerical Algorithms 59).  Each column of a block of rows is
divided by a power of two and split into slices of 6 bits.  A product of two slices sums at most
2,048 products of integers up to 64, which float32 holds exactly in any order of summation, also if
the device rounds factors to TF32 or bfloat16.
"""

from __future__ import annotations

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


class DeviceGram:
    """Sum of the Gram matrices Z'Z of blocks of rows, whose products a device computes.

    Args:
        device: device of the products.
        width: number of columns.
        exact_slices: whether to multiply slices in float32; None does so on devices without
            float64.
    """

    def __init__(self, device: torch.device, width: int, exact_slices: bool | None = None) -> None:
        self.device = device
        self._sliced = device.type not in DOUBLE_DEVICES if exact_slices is None else exact_slices
        self._sum = np.zeros((width, width))
        self._on_device: Tensor | None = None

    def add(self, rows: np.ndarray) -> None:
        """Add the Gram matrix of rows (row, column) float64, at most `ROWS_AT_ONCE` of them."""
        if self._sliced:
            self._sum += sliced_gram(rows, self.device)
            return
        block = torch.from_numpy(rows).to(self.device)
        gram = block.T @ block
        self._on_device = gram if self._on_device is None else self._on_device.add_(gram)

    def result(self) -> np.ndarray:
        """Return the sum so far, symmetric float64 (column, column)."""
        total = self._sum if self._on_device is None else self._on_device.cpu().numpy()
        return np.tril(total) + np.tril(total, -1).T


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
