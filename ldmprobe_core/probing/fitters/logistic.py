"""Logistic probes of masks, fitted by Newton's method to the foreground share of each token.

The cross-entropy against a full-size mask equals the cross-entropy against the foreground share of
each token's block, so a fit on tokens is exact.  The objective and its gradient are computed in
float64 over all tokens.  The Hessian affects only the speed of convergence, so it is computed in
float32 from a subsample of the tokens and reused as long as it gives good steps.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

from ldmprobe_core.probing.fitters.ridge import RidgePath
from ldmprobe_core.probing.linear import LinearProbe, row_blocks

_TOKENS_A_CHANNEL = 64
"""Number of tokens for each channel in the first Hessian's subsample, for an error near 10 %."""

_SLOW = 0.25
"""Recompute the Hessian if a step leaves more than this fraction of the Newton decrement."""

_MOST_STEPS = 200

_ROUNDING = 1e-13
"""Largest difference of the objective that is treated as rounding error."""


def logistic_loss(
    x: np.ndarray,
    share: np.ndarray,
    weight: np.ndarray,
    bias: float,
    token_weight: np.ndarray | None = None,
) -> float:
    """Mean cross-entropy of logits x . weight + bias against soft labels in 0..1.

    Args:
        x: activations (token, channel).
        share: soft labels, the foreground share of each token, (token,).
        weight: weight of the probe, (channel,).
        bias: bias of the probe.
        token_weight: weight of each token in the mean, (token,); None weighs all tokens equally.
    """
    total, start = 0.0, 0
    for rows in row_blocks(x):
        part = slice(start, start + len(rows))
        logit = rows @ weight + bias
        losses = np.logaddexp(0, logit) - share[part] * logit
        total += _weighted_sum(losses, token_weight, part)
        start += len(rows)
    return total / _total_weight(x, token_weight)


def _weighted_sum(values: np.ndarray, weight: np.ndarray | None, part: slice) -> float:
    return float(values.sum() if weight is None else weight[part] @ values)


def _total_weight(x: np.ndarray, weight: np.ndarray | None) -> float:
    return len(x) if weight is None else float(weight.sum())


class LogisticPath:
    """Solver of logistic regression for a series of penalties on the same tokens.

    The objective is mean cross-entropy + penalty / 2 |w|², without a penalty on the bias, as in
    scikit-learn's ``LogisticRegression(C=1 / (penalty N))`` on N pixels.  Newton's method reuses
    its Hessian between steps and between penalties (Shamanskii 1967), so that most steps cost only
    one pass over the tokens.

    Args:
        x: activations (token, channel).
        share: foreground share of each token, (token,) in 0..1.
        weight: weight of each token, such as its number of measured pixels, (token,); None weighs
            all tokens equally.

    Attributes:
        passes: number of passes over the tokens so far.
    """

    def __init__(self, x: np.ndarray, share: np.ndarray, weight: np.ndarray | None = None) -> None:
        self.x, self.share, self.weight = x, share.astype(np.float64), weight
        self.total = _total_weight(x, weight)
        self.passes = 0
        sums = np.zeros(x.shape[1])
        start = 0
        for rows in row_blocks(x):
            sums += rows.sum(0) if weight is None else weight[start : start + len(rows)] @ rows
            start += len(rows)
        # Subtracting each channel's mean keeps the Hessian well-conditioned.
        self.mean = sums / self.total
        self._order = np.random.default_rng(0).permutation(len(x))
        self._hessian: np.ndarray | None = None

    def solve(
        self, penalty: float, start: tuple[np.ndarray, float], tolerance: float = 1e-9
    ) -> tuple[np.ndarray, float]:
        """Find the weight (channel,) and bias that minimise the penalised mean cross-entropy.

        Args:
            penalty: absolute penalty, > 0.
            start: weight and bias at which the iteration starts.
            tolerance: Newton decrement below which the iteration stops.  Half of the decrement
                estimates, to second order, how far the objective is above its minimum.
        """
        # `theta` holds the weight and, as its last element, the bias for centred activations.
        theta = np.append(start[0], start[1] + self.mean @ start[0])
        tokens = _TOKENS_A_CHANNEL * len(theta)
        value, gradient = self._value_and_gradient(theta, penalty)
        current = self._hessian is None
        if current:
            self._update_hessian(theta, tokens)
        factor = self._factor(penalty)
        previous_decrement = np.inf
        for _ in range(_MOST_STEPS):
            step = cho_solve(factor, gradient)
            decrement = float(gradient @ step)
            if decrement < tolerance:
                break
            slow = decrement > _SLOW * previous_decrement
            size = 1.0
            while not slow or current:
                trial = theta - size * step
                trial_value, trial_gradient = self._value_and_gradient(trial, penalty)
                if trial_value <= value - 1e-4 * size * decrement + _ROUNDING:
                    theta, value, gradient = trial, trial_value, trial_gradient
                    previous_decrement, current = decrement, False
                    break
                if not current:
                    slow = True
                    continue
                size /= 2
                # Stop here: a shorter step would change the objective by less than its rounding
                # error.
                if size < 1e-8:
                    return self._uncentred(theta)
            else:
                self._update_hessian(theta, tokens)
                factor, previous_decrement, current = self._factor(penalty), np.inf, True
                # Each Hessian is computed from twice as many tokens as the one before, because the
                # one before gave steps that were too slow.
                tokens *= 2
        return self._uncentred(theta)

    def _uncentred(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """Convert the solution for centred activations to weight and bias for the original ones."""
        return theta[:-1], float(theta[-1] - self.mean @ theta[:-1])

    def _value_and_gradient(self, theta: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient at the parameters `theta`, in one token pass."""
        self.passes += 1
        weight = theta[:-1]
        offset = theta[-1] - self.mean @ weight
        total, start = 0.0, 0
        gradient = np.zeros(len(theta))
        for rows in row_blocks(self.x):
            part = slice(start, start + len(rows))
            share = self.share[part]
            logit = rows @ weight + offset
            total += _weighted_sum(np.logaddexp(0, logit) - share * logit, self.weight, part)
            slope = expit(logit) - share
            if self.weight is not None:
                slope *= self.weight[part]
            gradient[:-1] += slope @ rows
            gradient[-1] += slope.sum()
            start += len(rows)
        gradient[:-1] -= gradient[-1] * self.mean
        gradient /= self.total
        gradient[:-1] += penalty * weight
        return total / self.total + penalty / 2 * float(weight @ weight), gradient

    def _update_hessian(self, theta: np.ndarray, tokens: int) -> None:
        """Recompute the cross-entropy's Hessian at parameters `theta` from a sample of tokens."""
        chosen, token_weight = self.x, self.weight
        if tokens < len(self.x):
            index = np.sort(self._order[:tokens])
            chosen = self.x[index]
            token_weight = None if self.weight is None else self.weight[index]
        mean, weight = self.mean.astype(np.float32), theta[:-1].astype(np.float32)
        hessian, start = np.zeros((len(theta), len(theta))), 0
        for rows in row_blocks(chosen, np.float32):
            centred = rows - mean
            probability = expit(centred @ weight + np.float32(theta[-1]))
            root = np.sqrt(probability * (1 - probability))
            if token_weight is not None:
                root *= np.sqrt(token_weight[start : start + len(rows)]).astype(np.float32)
            start += len(rows)
            scaled = np.empty((len(rows), len(theta)), np.float32)
            np.multiply(centred, root[:, None], out=scaled[:, :-1])
            scaled[:, -1] = root
            hessian += scaled.T @ scaled
        self._hessian = hessian / _total_weight(chosen, token_weight)

    def _factor(self, penalty: float) -> tuple[np.ndarray, bool]:
        """Return the penalised Hessian's Cholesky factor, damped if rounding made it indefinite."""
        if self._hessian is None:
            raise RuntimeError("Hessian: none to factorise. Fix: call `_update_hessian` first.")
        diagonal = np.full(len(self._hessian), penalty)
        # The bias has no penalty, and no curvature if all logits are saturated.  A tiny constant
        # keeps the Hessian positive definite in that case.
        diagonal[-1] = 1e-12
        scale = float(self._hessian.diagonal().mean()) or 1.0
        damping = 0.0
        while True:
            try:
                return cho_factor(self._hessian + np.diag(diagonal + damping), lower=True)
            except np.linalg.LinAlgError:
                damping = max(10 * damping, 1e-7 * scale)


def fit_logistic(
    x: np.ndarray,
    share: np.ndarray,
    validation_x: np.ndarray,
    validation_share: np.ndarray,
    penalties: tuple[float, ...],
    path: RidgePath,
    label: int,
    token_weight: np.ndarray | None = None,
    validation_weight: np.ndarray | None = None,
) -> LinearProbe:
    """Fit a logistic probe at each penalty; return the one with the least validation loss.

    The fits go from the strongest penalty to the weakest, and each starts from the previous
    optimum.  The first starts from the ridge solution times 4, because a share changes a quarter as
    fast as its logit does (at a share of one half).

    Args:
        x, validation_x: activations (token, channel).
        share, validation_share: foreground share of each token, (token,) in 0..1.
        penalties: candidate relative penalties.
        path: ridge solutions on the same training tokens.
        label: column of this label in `path`.
        token_weight, validation_weight: number of measured pixels in each token's block, (token,);
            None if all were measured.
    """
    weight, bias = path.solve(max(penalties))
    start = 4 * weight[:, label], 4 * (float(bias[label]) - 0.5)
    best: tuple[float, LinearProbe] | None = None
    solver = LogisticPath(x, share, token_weight)
    for penalty in sorted(penalties, reverse=True):
        start = solver.solve(penalty * path.unit, start)
        loss = logistic_loss(validation_x, validation_share, *start, validation_weight)
        if best is None or loss < best[0]:
            best = loss, LinearProbe(start[0], start[1], penalty)
        elif loss > best[0] * 1.02:
            # Stop: the validation loss rises because the probe overfits, and the weaker penalties
            # that remain would overfit even more.
            break
    if best is None:
        raise ValueError("probes.penalties: no penalty (empty list). Fix: give at least one.")
    return best[1]
