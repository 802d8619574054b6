"""Logistic probes: cross-entropy with each token's share of foreground, by a second-order method.

Cross-entropy against a full-size mask equals cross-entropy against the block's foreground share, so
this is exact on tokens.  A pass over the tokens gives value and gradient in float64; the curvature
only steers the steps, so it is taken in float32, of a part of the tokens, and kept while it serves.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

from ldmprobe_core.probing.fitters.ridge import RidgePath
from ldmprobe_core.probing.linear import LinearProbe, row_blocks

_TOKENS_A_CHANNEL = 64
"""Tokens that the curvature is first taken of, for each channel: a tenth off, at a bounded cost."""

_SLOW = 0.25
"""Recompute the Hessian if a step shrinks the Newton decrement by less than this factor."""

_MOST_STEPS = 200

_ROUNDING = 1e-13
"""Differences of the objective below this are not told from rounding."""


def logistic_loss(x: np.ndarray, share: np.ndarray, weight: np.ndarray, bias: float) -> float:
    """Mean cross-entropy of logits x . weight + bias against soft labels in 0..1."""
    total, start = 0.0, 0
    for rows in row_blocks(x):
        logit = rows @ weight + bias
        total += float((np.logaddexp(0, logit) - share[start : start + len(rows)] * logit).sum())
        start += len(rows)
    return total / len(x)


class LogisticPath:
    """Minimises mean cross-entropy + penalty / 2 |w|² (bias unpenalised), penalty after penalty.

    The same optimum as scikit-learn's ``LogisticRegression(C=1 / (penalty N))`` on N pixels.
    Newton's method with a curvature that is kept from step to step and from penalty to penalty
    (Shamanskii 1967), so that most steps cost one pass over the tokens.

    Args:
        x: (token, channel); share: (token,) in 0..1.

    Attributes:
        passes: over the tokens, so far.
    """

    def __init__(self, x: np.ndarray, share: np.ndarray) -> None:
        self.x, self.share = x, share.astype(np.float64)
        self.passes = 0
        sums = np.zeros(x.shape[1])
        for rows in row_blocks(x):
            sums += rows.sum(0)
        self.mean = sums / len(x)  # channels are centred, or the bias would drown the curvature
        self._order = np.random.default_rng(0).permutation(len(x))
        self._curvature: np.ndarray | None = None

    def solve(
        self, penalty: float, start: tuple[np.ndarray, float], tolerance: float = 1e-9
    ) -> tuple[np.ndarray, float]:
        """Weight (channel,) and bias at the optimum.

        Args:
            penalty: absolute, > 0.
            start: weight and bias to begin from.
            tolerance: on the Newton decrement by the curvature that is kept; half of a true one is
                the distance to the minimum, to second order.
        """
        place = np.append(start[0], start[1] + self.mean @ start[0])  # bias at the mean token
        tokens = _TOKENS_A_CHANNEL * len(place)
        value, gradient = self._value_and_gradient(place, penalty)
        current = self._curvature is None
        if current:
            self._update_hessian(place, tokens)
        factor = self._factor(penalty)
        before = np.inf
        for _ in range(_MOST_STEPS):
            step = cho_solve(factor, gradient)
            decrement = float(gradient @ step)
            if decrement < tolerance:
                break
            slow = decrement > _SLOW * before
            size = 1.0
            while not slow or current:
                trial = place - size * step
                trial_value, trial_gradient = self._value_and_gradient(trial, penalty)
                if trial_value <= value - 1e-4 * size * decrement + _ROUNDING:
                    place, value, gradient = trial, trial_value, trial_gradient
                    before, current = decrement, False
                    break
                if not current:
                    slow = True
                    continue
                size /= 2
                if size < 1e-8:  # rounding is all that is left to gain
                    return self._uncentred(place)
            else:
                self._update_hessian(place, tokens)
                factor, before, current = self._factor(penalty), np.inf, True
                tokens *= 2  # subsample twice as many tokens next time
        return self._uncentred(place)

    def _uncentred(self, place: np.ndarray) -> tuple[np.ndarray, float]:
        return place[:-1], float(place[-1] - self.mean @ place[:-1])

    def _value_and_gradient(self, place: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        """Objective and gradient, in one pass."""
        self.passes += 1
        weight = place[:-1]
        offset = place[-1] - self.mean @ weight
        total, start = 0.0, 0
        gradient = np.zeros(len(place))
        for rows in row_blocks(self.x):
            share = self.share[start : start + len(rows)]
            logit = rows @ weight + offset
            total += float((np.logaddexp(0, logit) - share * logit).sum())
            slope = expit(logit) - share
            gradient[:-1] += slope @ rows
            gradient[-1] += slope.sum()
            start += len(rows)
        gradient[:-1] -= gradient[-1] * self.mean
        gradient /= len(self.x)
        gradient[:-1] += penalty * weight
        return total / len(self.x) + penalty / 2 * float(weight @ weight), gradient

    def _update_hessian(self, place: np.ndarray, tokens: int) -> None:
        """Recompute the Hessian of the cross-entropy at theta from a subsample of the tokens."""
        chosen = self.x
        if tokens < len(self.x):
            chosen = self.x[np.sort(self._order[:tokens])]
        mean, weight = self.mean.astype(np.float32), place[:-1].astype(np.float32)
        hessian = np.zeros((len(place), len(place)))
        for rows in row_blocks(chosen, np.float32):
            centred = rows - mean
            chance = expit(centred @ weight + np.float32(place[-1]))
            root = np.sqrt(chance * (1 - chance))
            bent = np.empty((len(rows), len(place)), np.float32)
            np.multiply(centred, root[:, None], out=bent[:, :-1])
            bent[:, -1] = root
            hessian += bent.T @ bent
        self._curvature = hessian / len(chosen)

    def _factor(self, penalty: float) -> tuple[np.ndarray, bool]:
        """Curvature with the penalty, factorised; damped where float32 left it indefinite."""
        if self._curvature is None:
            raise RuntimeError("the curvature is needed before a step computes it")
        diagonal = np.full(len(self._curvature), penalty)
        diagonal[-1] = 1e-12  # keeps the bias solvable where every prediction is already certain
        scale = float(self._curvature.diagonal().mean()) or 1.0
        damping = 0.0
        while True:
            try:
                return cho_factor(self._curvature + np.diag(diagonal + damping), lower=True)
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
) -> LinearProbe:
    """Logistic probe at the penalty with the least validation cross-entropy.

    The path goes from the strongest penalty to the weakest, each from the last one's optimum, the
    first from the ridge solution (a share's slope is a quarter of its logit's).

    Args:
        path: of the same training tokens; `label` is this label's column in it.
    """
    weight, bias = path.solve(max(penalties))
    start = 4 * weight[:, label], 4 * (float(bias[label]) - 0.5)
    best: tuple[float, LinearProbe] | None = None
    fits = LogisticPath(x, share)
    for penalty in sorted(penalties, reverse=True):
        start = fits.solve(penalty * path.unit, start)
        loss = logistic_loss(validation_x, validation_share, *start)
        if best is None or loss < best[0]:
            best = loss, LinearProbe(start[0], start[1], penalty)
        elif loss > best[0] * 1.02:
            break  # weaker penalties only fit the training tokens further
    if best is None:
        raise ValueError("penalties: none. Fix: give at least one")
    return best[1]
