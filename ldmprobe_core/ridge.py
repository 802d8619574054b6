"""Ridge probes from sufficient statistics: one pass over the tokens serves every label and penalty.

Least squares needs only sums of products, and those add up over samples, batches and workers: the
same probes come out however the tokens were dealt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk

from ldmprobe_core.probes import ROWS_AT_ONCE, Probe, row_blocks


@dataclass(frozen=True)
class Moments:
    """Sums of products of tokens with themselves and with their labels; they add up.

    Attributes:
        gram: Z'Z of rows Z = [activation, 1, label] (channel + 1 + label), symmetric, float64: one
            symmetric rank-k update a block of tokens.
        channels: how many of its columns are activations.
    """

    gram: np.ndarray
    channels: int

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Moments:
        """Of activations (token, channel) and labels (token, label), added up in float64."""
        channels, labels = x.shape[1], y.shape[1]
        width = channels + 1 + labels
        upper = np.zeros((width, width), order="F")
        rows, start = np.ones((min(len(x), ROWS_AT_ONCE), width)), 0
        for block in row_blocks(x, None):
            part = rows[: len(block)]
            part[:, :channels] = block
            part[:, channels + 1 :] = y[start : start + len(block)]
            upper = dsyrk(1.0, part.T, beta=1.0, c=upper, overwrite_c=1)
            start += len(block)
        return cls(np.triu(upper) + np.triu(upper, 1).T, channels)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gram + other.gram, self.channels)

    @property
    def n(self) -> int:
        """Tokens."""
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
        """Of the activations, (channel, channel)."""
        mean = self.x / self.n
        return self.xx / self.n - np.outer(mean, mean)

    def error(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Mean squared error (label,) of predictions x . weight + bias; weight (channel, label)."""
        squared = self.yy + (weight * (self.xx @ weight)).sum(0) + self.n * bias**2
        cross = (weight * self.xy).sum(0) + bias * self.y
        return (squared - 2 * cross + 2 * bias * (self.x @ weight)) / self.n


@dataclass(frozen=True)
class RidgePath:
    """Ridge solutions for every penalty, from the same sums.

    Minimises mean (y - x.w - b)² + p v |w|² (bias unpenalised), v the mean channel variance.  The
    same optimum as scikit-learn's ``Ridge(alpha=p v N)`` on N pixels.  A penalty costs one Cholesky
    factorisation: six of them take half as long as one eigendecomposition that would serve any.
    """

    mean_x: np.ndarray
    mean_y: np.ndarray
    covariance: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, moments: Moments) -> RidgePath:
        """Centre the sums.

        Raises:
            ValueError: there are no tokens.
        """
        if not moments.n:
            raise ValueError("no tokens to fit a probe to")
        mean_x, mean_y = moments.x / moments.n, moments.y / moments.n
        cross = moments.xy / moments.n - np.outer(mean_x, mean_y)
        return cls(mean_x, mean_y, moments.covariance, cross)

    @property
    def unit(self) -> float:
        """Mean channel variance, the unit of penalties; 1 where the layer is constant."""
        return max(float(self.covariance.diagonal().mean()), 0.0) or 1.0

    def solve(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Weight (channel, label) and bias (label,) at a relative penalty > 0."""
        system = self.covariance.copy()
        system.flat[:: len(system) + 1] += penalty * self.unit
        try:
            factor = cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
            weight = cho_solve(factor, self.cross, check_finite=False)
        except np.linalg.LinAlgError:  # rounding outweighs the penalty: leave out what is rounding
            values, vectors = np.linalg.eigh(self.covariance)
            real = values > len(values) * np.finfo(float).eps * values.max()
            scale = values[real] + penalty * self.unit
            weight = vectors[:, real] @ (vectors[:, real].T @ self.cross / scale[:, None])
        return weight, self.mean_y - self.mean_x @ weight


def fit_ridge(path: RidgePath, validation: Moments, penalties: tuple[float, ...]) -> list[Probe]:
    """One ridge probe a label, each at the penalty with the least validation error."""
    solutions = [path.solve(penalty) for penalty in penalties]
    errors = np.stack([validation.error(*solution) for solution in solutions])
    probes = []
    for label, best in enumerate(errors.argmin(0)):
        weight, bias = solutions[best]
        probes.append(Probe(weight[:, label], float(bias[label]), penalties[best]))
    return probes
