"""Ridge probes, fitted from sufficient statistics.

Least squares needs only sums of products over the tokens, so one pass over the tokens serves every
label and penalty.  Sums from several batches or workers can be added, so the probes do not depend
on how the tokens were distributed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs

from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.statistics import SufficientStatistics


@dataclass(frozen=True)
class RidgePath:
    """Solver of ridge regression at any penalty, from one set of sufficient statistics.

    A solution minimises mean (y - x.w - b)² + p v |w|², where p is the relative penalty and v the
    mean variance of a channel; the bias has no penalty.  On N pixels, scikit-learn's
    ``Ridge(alpha=p v N)`` gives the same solution.  Each penalty needs one Cholesky factorisation.
    A single eigendecomposition would serve all penalties, but takes as long as twelve
    factorisations.

    Attributes:
        mean_x, mean_y: means of activations (channel,) and of labels (label,).
        covariance: covariance of the activations, (channel, channel).
        cross: covariance of activations with labels, (channel, label).
    """

    mean_x: np.ndarray
    mean_y: np.ndarray
    covariance: np.ndarray
    cross: np.ndarray

    @classmethod
    def from_statistics(cls, statistics: SufficientStatistics) -> RidgePath:
        """Compute the means and covariances for ridge regression from sums over tokens.

        Raises:
            ValueError: there are no tokens.
        """
        if not statistics.n:
            raise ValueError(
                "statistics: no tokens (0) to fit a probe to. Fix: add training samples."
            )
        mean_x, mean_y = statistics.x / statistics.n, statistics.y / statistics.n
        cross = statistics.xy / statistics.n - np.outer(mean_x, mean_y)
        return cls(mean_x, mean_y, statistics.covariance, cross)

    @property
    def unit(self) -> float:
        """Factor of relative penalties: the channels' mean variance, or 1 if that variance is 0."""
        return max(float(self.covariance.diagonal().mean()), 0.0) or 1.0

    def solve(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Solve for weights (channel, label) and biases (label,) at a relative penalty > 0."""
        system = self.covariance.copy()
        system.flat[:: len(system) + 1] += penalty * self.unit
        # Call LAPACK itself: the matrices are small, and SciPy's wrappers take as long as it does.
        factor, failed = dpotrf(system, lower=1, clean=0, overwrite_a=1)
        weight = dpotrs(factor, self.cross, lower=1)[0]
        if failed:
            # Cholesky factorisation fails if rounding errors exceed the penalty.  In that case,
            # solve with only the eigenvalues that are larger than rounding errors.
            values, vectors = np.linalg.eigh(self.covariance)
            usable = values > len(values) * np.finfo(float).eps * values.max()
            scale = values[usable] + penalty * self.unit
            weight = vectors[:, usable] @ (vectors[:, usable].T @ self.cross / scale[:, None])
        return weight, self.mean_y - self.mean_x @ weight


def fit_ridge(
    path: RidgePath, validation: SufficientStatistics, penalties: tuple[float, ...]
) -> list[LinearProbe]:
    """Fit a ridge probe to each label, at the penalty with the least validation error."""
    solutions = [path.solve(penalty) for penalty in penalties]
    errors = np.stack([validation.error(*solution) for solution in solutions])
    probes = []
    for label, best in enumerate(errors.argmin(0)):
        weight, bias = solutions[best]
        probes.append(LinearProbe(weight[:, label], float(bias[label]), penalties[best]))
    return probes
