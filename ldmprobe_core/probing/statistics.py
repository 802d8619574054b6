"""Sufficient statistics of linear regression, which workers compute separately and then add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dsyrk

from ldmprobe_core.probing.linear import ROWS_AT_ONCE, row_blocks


@dataclass(frozen=True)
class SufficientStatistics:
    """Sums over tokens of activations, labels and their products, as linear regression needs them.

    Adding two objects gives the statistics of both sets of tokens together.

    Attributes:
        gram: Gram matrix Z'Z, where the row of Z for each token is [activations, 1, labels];
            symmetric float64 with (channel + 1 + label) rows.
        channels: number of channels of the activations.
    """

    gram: np.ndarray
    channels: int

    @classmethod
    def from_tokens(
        cls, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None
    ) -> SufficientStatistics:
        """Compute the sums over tokens in float64, with one rank-k update for each block.

        Args:
            x: activations (token, channel).
            y: labels (token, label), finite.
            weight: number of times that each token counts, (token,); None counts each token once.
        """
        channels, labels = x.shape[1], y.shape[1]
        width = channels + 1 + labels
        upper = np.zeros((width, width), order="F")
        rows, start = np.ones((min(len(x), ROWS_AT_ONCE), width)), 0
        for block in row_blocks(x, None):
            part = rows[: len(block)]
            part[:, :channels] = block
            part[:, channels + 1 :] = y[start : start + len(block)]
            if weight is not None:
                part[:, channels] = 1
                part *= np.sqrt(weight[start : start + len(block), None])
            upper = dsyrk(1.0, part.T, beta=1.0, c=upper, overwrite_c=1)
            start += len(block)
        return cls(np.triu(upper) + np.triu(upper, 1).T, channels)

    def __add__(self, other: SufficientStatistics) -> SufficientStatistics:
        return SufficientStatistics(self.gram + other.gram, self.channels)

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
        """Mean squared error of the predictions x . weight + bias on these tokens, (label,).

        Args:
            weight: (channel, label).
            bias: (label,).
        """
        squared = self.yy + (weight * (self.xx @ weight)).sum(0) + self.n * bias**2
        cross = (weight * self.xy).sum(0) + bias * self.y
        return (squared - 2 * cross + 2 * bias * (self.x @ weight)) / self.n
