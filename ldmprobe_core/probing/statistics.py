"""Sufficient statistics of linear regression, which workers compute separately and then add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.linalg.blas import dsyrk

from ldmprobe_core.probing.linear import ROWS_AT_ONCE, row_blocks

if TYPE_CHECKING:
    # Import for type checks only: the imported module loads torch, which reports do not need.
    from ldmprobe_core.probing.sums.device_sums import DeviceSums


@dataclass(frozen=True)
class SufficientStatistics:
    """Sums over tokens of activations, labels and their products, for linear regression.

    Adding two objects gives the statistics of both sets of tokens together.

    Attributes:
        gram: Gram matrix Z'Z, where the row of Z for each token is [activations, 1, labels];
            symmetric float64 with (channel + 1 + label) rows.
        channels: number of channels of the activations.
        by_position: sums of the rows of Z at each position, (position, channel + 1 + label)
            float64; None if they were not computed.
    """

    gram: np.ndarray
    channels: int
    by_position: np.ndarray | None = None

    @classmethod
    def from_tokens(
        cls,
        x: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray | None = None,
        positions: np.ndarray | None = None,
        n_positions: int = 0,
        device_sums: DeviceSums | None = None,
    ) -> SufficientStatistics:
        """Compute the sums over tokens in float64, with one rank-k update for each block of rows.

        Args:
            x: activations (token, channel).
            y: labels (token, label), finite.
            weight: number of times that each token counts, (token,); None counts each token once.
            positions: index of the position of each token, (token,); None leaves `by_position` out.
            n_positions: number of positions.
            device_sums: sums that another device computes; None computes here.
        """
        channels, labels = x.shape[1], y.shape[1]
        if device_sums is not None and not device_sums.sliced:
            square_root = None if weight is None else np.sqrt(weight.astype(np.float64))
            gram, at_positions = device_sums.sums(x, y, square_root, positions, n_positions)
            return cls(gram, channels, at_positions)
        width = channels + 1 + labels
        upper = np.zeros((width, width), order="F")
        by_position = None if positions is None else np.zeros((n_positions, width))
        rows, start = np.ones((min(len(x), ROWS_AT_ONCE), width)), 0
        for block in row_blocks(x, None):
            part = rows[: len(block)]
            part[:, :channels] = block
            part[:, channels + 1 :] = y[start : start + len(block)]
            here = slice(start, start + len(block))
            root = None
            if weight is not None:
                root = np.sqrt(weight[here].astype(np.float64))
                part[:, channels] = 1
                part *= root[:, None]
            if positions is not None:
                by_position += _sums_by_position(part, positions[here], n_positions, root)
            if device_sums is None:
                upper = dsyrk(1.0, part.T, beta=1.0, c=upper, overwrite_c=1)
            else:
                upper += np.triu(device_sums.sliced_gram(part))
            start += len(block)
        return cls(np.triu(upper) + np.triu(upper, 1).T, channels, by_position)

    def __add__(self, other: SufficientStatistics) -> SufficientStatistics:
        both = None
        if self.by_position is not None and other.by_position is not None:
            both = self.by_position + other.by_position
        return SufficientStatistics(self.gram + other.gram, self.channels, both)

    @classmethod
    def total(cls, parts: Sequence[SufficientStatistics]) -> SufficientStatistics:
        """Add the statistics of several sets of tokens, one after another, in new arrays."""
        gram, first = parts[0].gram.copy(), parts[0]
        by_position = None if first.by_position is None else first.by_position.copy()
        for part in parts[1:]:
            gram += part.gram
            if by_position is not None and part.by_position is not None:
                by_position += part.by_position
        return cls(gram, first.channels, by_position)

    def less_positions(self, means: np.ndarray) -> SufficientStatistics:
        """Return the statistics for the labels minus ``means``, given for each label and position.

        Args:
            means: value of each label at each position, (position, label).

        Raises:
            ValueError: the sums at each position were not computed.
        """
        if self.by_position is None:
            raise ValueError(
                "by_position: the sums were not computed (None). Fix: pass positions to from_tokens"
            )
        values = np.zeros_like(self.by_position)
        values[:, self.channels + 1 :] = means
        # Let Z have one row for each token, and let P have, for each token, the row of `values` of
        # the token's position.  The subtraction replaces Z by Z - P, so the new Gram matrix is
        # (Z - P)'(Z - P) = Z'Z - Z'P - P'Z + P'P.
        cross = self.by_position.T @ values
        count = self.by_position[:, self.channels, None]
        gram = self.gram - cross - cross.T + values.T @ (count * values)
        by_position = self.by_position - count * values
        return SufficientStatistics(gram, self.channels, by_position)

    @property
    def n(self) -> int:
        """Sum of the tokens' weights, which is the number of tokens if all weights are 1."""
        return round(self.gram[self.channels, self.channels])

    @property
    def x(self) -> np.ndarray:
        """Sums of activations, (channel,)."""
        return self.gram[: self.channels, self.channels]

    @property
    def y(self) -> np.ndarray:
        """Sums of labels, (label,)."""
        return self.gram[self.channels, self.channels + 1 :]

    @property
    def xx(self) -> np.ndarray:
        """Sums of products of activations, (channel, channel)."""
        return self.gram[: self.channels, : self.channels]

    @property
    def xy(self) -> np.ndarray:
        """Sums of products of activations and labels, (channel, label)."""
        return self.gram[: self.channels, self.channels + 1 :]

    @property
    def yy(self) -> np.ndarray:
        """Sums of squared labels, (label,)."""
        return self.gram.diagonal()[self.channels + 1 :]

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the activations, (channel, channel)."""
        mean = self.x / self.n
        return self.xx / self.n - np.outer(mean, mean)

    def error(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Compute the mean squared error of the predictions x . weight + bias, (label,).

        Args:
            weight: (channel, label).
            bias: (label,).
        """
        squared = self.yy + (weight * (self.xx @ weight)).sum(0) + self.n * bias**2
        cross = (weight * self.xy).sum(0) + bias * self.y
        return (squared - 2 * cross + 2 * bias * (self.x @ weight)) / self.n


def _sums_by_position(
    rows: np.ndarray, positions: np.ndarray, count: int, factor: np.ndarray | None
) -> np.ndarray:
    """Sum the rows (token, column) of each position, weighted by `factor`, (position, column)."""
    if factor is None:
        return np.asarray(_members(positions.astype(np.int32).tobytes(), count) @ rows)
    return np.asarray(_member_matrix(positions, count, factor) @ rows)


def _member_matrix(positions: np.ndarray, count: int, values: np.ndarray) -> sparse.csr_array:
    """Build the matrix (position, token) with the value of each token at its position."""
    tokens = np.arange(len(positions))
    return sparse.csr_array((values, (positions, tokens)), shape=(count, len(positions)))


@lru_cache(maxsize=8)
def _members(positions: bytes, count: int) -> sparse.csr_array:
    """Return the matrix of 0 and 1 that sums the tokens of each position, (position, token).

    Building it takes as long as multiplying with it, and all blocks of images share it.

    Args:
        positions: position of each token, int32.
        count: number of positions.
    """
    of_tokens = np.frombuffer(positions, np.int32)
    return _member_matrix(of_tokens, count, np.ones(len(of_tokens)))
