"""Logistic probes of masks, fitted by Newton's method to the foreground share of each token.

The cross-entropy against a full-size mask equals the cross-entropy against the foreground share of
each token's block, so a fit on tokens is exact.  The objective and its gradient are computed in
float64 over all tokens.  The Hessian affects only the speed of convergence, so it is computed in
float32 from a subsample of the tokens and reused as long as it gives good steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

from ldmprobe_core.probing.fitters.ridge import RidgePath
from ldmprobe_core.probing.linear import LinearProbe, row_blocks

_TOKENS_A_CHANNEL = 64
"""Number of tokens for each channel in the first Hessian's subsample, for an error near 10 %."""

_SLOW = 0.1
"""Recompute the Hessian if a step leaves more than this fraction of the Newton decrement."""

_STEPS_KEPT = 8
"""Number of latest steps whose changes of the gradient correct the reused Hessian."""

_MOST_STEPS = 200

_WIDENED_BYTES = 1 << 27
"""Largest size in bytes at which all tokens are kept in float64 between passes."""

_ROUNDING = 1e-13
"""Largest difference of the objective that is treated as rounding error."""


@dataclass(frozen=True)
class SoftLabels:
    """Activations of tokens, and the foreground shares to which a logistic probe is fitted.

    Attributes:
        x: activations (token, channel).
        share: foreground share of each token, (token,) in 0..1.
        weight: weight of each token in means, such as its number of measured pixels, (token,); None
            weighs all tokens equally.
        offset: value that is added to the logit of each token, (token,); None adds nothing.
    """

    x: np.ndarray
    share: np.ndarray
    weight: np.ndarray | None = None
    offset: np.ndarray | None = None

    @property
    def total(self) -> float:
        """Sum of the weights of all tokens."""
        return len(self.x) if self.weight is None else float(self.weight.sum())

    def logits(self, rows: np.ndarray, part: slice, weight: np.ndarray, bias: float) -> np.ndarray:
        """Compute the logits of the tokens in the slice ``part``.

        Args:
            rows: activations of these tokens alone, (token, channel).
            part: slice of these tokens among all tokens, which selects their offsets.
            weight: weight of the probe, (channel,).
            bias: bias of the probe.
        """
        logits = rows @ weight + bias
        return logits if self.offset is None else logits + self.offset[part]

    def weighted_sum(self, values: np.ndarray, part: slice) -> float:
        """Sum the values of the tokens in the slice ``part``, weighted by the tokens' weights."""
        return float(values.sum() if self.weight is None else self.weight[part] @ values)

    def widened(self) -> SoftLabels:
        """Return the tokens in float64 if they take little memory, to speed up later passes.

        Otherwise every pass converts block after block.  The values are the same.
        """
        if self.x.size * 8 > _WIDENED_BYTES:
            return self
        return replace(self, x=np.concatenate([*row_blocks(self.x)]))

    def select(self, index: np.ndarray) -> SoftLabels:
        """Return the tokens with these indices."""
        weight, offset = (
            None if values is None else values[index] for values in (self.weight, self.offset)
        )
        return SoftLabels(self.x[index], self.share[index], weight, offset)


def loss_and_probability(logit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute log(1 + exp(logit)) and 1 / (1 + exp(-logit)), which share one exponential.

    Args:
        logit: (n,) float64.
    """
    decay = np.exp(-np.abs(logit))
    loss = np.log1p(decay) + np.maximum(logit, 0)
    return loss, np.where(logit >= 0, 1.0, decay) / (1 + decay)


def logistic_loss(labels: SoftLabels, weight: np.ndarray, bias: float) -> float:
    """Compute the mean cross-entropy of logits x . weight + bias + offset against soft labels.

    Args:
        labels: tokens and their labels.
        weight: weight of the probe, (channel,).
        bias: bias of the probe.
    """
    total, start = 0.0, 0
    for rows in row_blocks(labels.x):
        part = slice(start, start + len(rows))
        logit = labels.logits(rows, part, weight, bias)
        losses = loss_and_probability(logit)[0] - labels.share[part] * logit
        total += labels.weighted_sum(losses, part)
        start += len(rows)
    return total / labels.total


@dataclass(frozen=True)
class _Point:
    """Mean cross-entropy and its gradient at one vector of parameters.

    Attributes:
        theta: weight (channel,) and, as the last element, the bias for centred activations.
        value: mean cross-entropy, without the penalty.
        gradient: its gradient, like `theta`.
    """

    theta: np.ndarray
    value: float
    gradient: np.ndarray

    def penalised(self, penalty: float) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient with the penalty on the weight."""
        weight, gradient = self.theta[:-1], self.gradient.copy()
        gradient[:-1] += penalty * weight
        return self.value + penalty / 2 * float(weight @ weight), gradient


class LogisticPath:
    """Solver of logistic regression for a series of penalties on the same tokens.

    The objective is mean cross-entropy + penalty / 2 |w|², without a penalty on the bias, as in
    scikit-learn's ``LogisticRegression(C=1 / (penalty N))`` on N pixels.  Newton's method reuses
    its Hessian between steps and between penalties (Shamanskii 1967), so that most steps cost only
    one pass over the tokens.  The changes of the gradient in the latest steps correct the reused
    Hessian (L-BFGS: Nocedal & Wright, Numerical Optimization, algorithm 7.4), which saves passes.

    Args:
        labels: training tokens and their labels.

    Attributes:
        passes: number of passes over the tokens so far.
    """

    def __init__(self, labels: SoftLabels) -> None:
        self.labels, weight = labels, labels.weight
        self.passes = 0
        sums = np.zeros(labels.x.shape[1])
        start = 0
        for rows in row_blocks(labels.x):
            sums += rows.sum(0) if weight is None else weight[start : start + len(rows)] @ rows
            start += len(rows)
        # Centre the channels by their means; otherwise the Hessian would be ill-conditioned.
        self.mean = sums / labels.total
        self._order = np.random.default_rng(0).permutation(len(labels.x))
        self._hessian: np.ndarray | None = None
        self._steps: list[tuple[np.ndarray, np.ndarray]] = []
        self._solved: _Point | None = None

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
        point = self._point_of(start)
        tokens = _TOKENS_A_CHANNEL * len(point.theta)
        current = self._hessian is None
        if current:
            self._update_hessian(point.theta, tokens)
        factor, previous_decrement = self._factor(penalty), np.inf
        for _ in range(_MOST_STEPS):
            value, gradient = point.penalised(penalty)
            step = self._newton_step(factor, gradient, penalty)
            decrement = float(gradient @ step)
            if decrement < tolerance:
                break
            slow = decrement > _SLOW * previous_decrement
            size = 1.0
            while not slow or current:
                trial = self._evaluate(point.theta - size * step)
                if trial.penalised(penalty)[0] <= value - 1e-4 * size * decrement + _ROUNDING:
                    self._keep_step(point, trial)
                    point = trial
                    previous_decrement, current = decrement, False
                    break
                if not current:
                    slow = True
                    continue
                size /= 2
                # Stop, because a shorter step would change the objective by less than its rounding
                # error.
                if size < 1e-8:
                    return self._solution(point)
            else:
                self._update_hessian(point.theta, tokens)
                factor, previous_decrement, current = self._factor(penalty), np.inf, True
                # If steps stay slow with this Hessian, compute the next Hessian from twice as many
                # tokens.
                tokens *= 2
        return self._solution(point)

    def _point_of(self, start: tuple[np.ndarray, float]) -> _Point:
        """Evaluate the cross-entropy at a weight and bias, in a pass unless it was solved there."""
        if self._solved is not None:
            weight, bias = self._uncentred(self._solved.theta)
            if bias == start[1] and np.array_equal(weight, start[0]):
                return self._solved
        return self._evaluate(np.append(start[0], start[1] + self.mean @ start[0]))

    def _solution(self, point: _Point) -> tuple[np.ndarray, float]:
        """Keep a point as the start of the next solution; return its weight and bias."""
        self._solved = point
        return self._uncentred(point.theta)

    def _keep_step(self, before: _Point, after: _Point) -> None:
        """Keep a step and its change of the gradient, if the change has positive curvature."""
        step, change = after.theta - before.theta, after.gradient - before.gradient
        if step @ change > 0:
            self._steps = [*self._steps, (step, change)][-_STEPS_KEPT:]

    def _newton_step(
        self, factor: tuple[np.ndarray, bool], gradient: np.ndarray, penalty: float
    ) -> np.ndarray:
        """Solve for the step with the penalised Hessian, corrected by the steps that were kept.

        Args:
            factor: Cholesky factor of the penalised Hessian.
            gradient: gradient of the penalised objective.
            penalty: absolute penalty.
        """
        direction, applied = gradient.copy(), []
        for step, change in reversed(self._steps):
            # The kept changes are those of the cross-entropy; the penalty's own are added here.
            change = change.copy()
            change[:-1] += penalty * step[:-1]
            curvature = step @ change
            share = step @ direction / curvature
            direction -= share * change
            applied.append((step, change, curvature, share))
        direction = cho_solve(factor, direction)
        for step, change, curvature, share in reversed(applied):
            direction += step * (share - change @ direction / curvature)
        return direction

    def _uncentred(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """Convert the solution for centred activations to weight and bias for the original ones."""
        return theta[:-1], float(theta[-1] - self.mean @ theta[:-1])

    def _evaluate(self, theta: np.ndarray) -> _Point:
        """Compute the cross-entropy and its gradient at `theta`, in one pass over the tokens."""
        self.passes += 1
        labels = self.labels
        weight, bias = self._uncentred(theta)
        total, start = 0.0, 0
        gradient = np.zeros(len(theta))
        for rows in row_blocks(labels.x):
            part = slice(start, start + len(rows))
            share = labels.share[part]
            logit = labels.logits(rows, part, weight, bias)
            loss, probability = loss_and_probability(logit)
            total += labels.weighted_sum(loss - share * logit, part)
            slope = probability - share
            if labels.weight is not None:
                slope *= labels.weight[part]
            gradient[:-1] += slope @ rows
            gradient[-1] += slope.sum()
            start += len(rows)
        gradient[:-1] -= gradient[-1] * self.mean
        return _Point(theta, total / labels.total, gradient / labels.total)

    def _update_hessian(self, theta: np.ndarray, tokens: int) -> None:
        """Recompute the Hessian of the cross-entropy at theta from a subsample of the tokens."""
        chosen = self.labels
        if tokens < len(chosen.x):
            chosen = chosen.select(np.sort(self._order[:tokens]))
        mean, weight = self.mean.astype(np.float32), theta[:-1].astype(np.float32)
        hessian, start = np.zeros((len(theta), len(theta))), 0
        for rows in row_blocks(chosen.x, np.float32):
            part = slice(start, start + len(rows))
            centred = rows - mean
            logit = chosen.logits(centred, part, weight, float(theta[-1])).astype(np.float32)
            probability = expit(logit)
            root = np.sqrt(probability * (1 - probability))
            if chosen.weight is not None:
                root *= np.sqrt(chosen.weight[part]).astype(np.float32)
            start += len(rows)
            scaled = np.empty((len(rows), len(theta)), np.float32)
            np.multiply(centred, root[:, None], out=scaled[:, :-1])
            scaled[:, -1] = root
            hessian += scaled.T @ scaled
        self._hessian = hessian / chosen.total
        # The kept steps correct the former Hessian.
        self._steps = []

    def _factor(self, penalty: float) -> tuple[np.ndarray, bool]:
        """Return the penalised Hessian's Cholesky factor, damped if rounding requires it."""
        if self._hessian is None:
            raise RuntimeError("Hessian: not computed (None). Fix: call `_update_hessian` first.")
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
    train: SoftLabels,
    validation: SoftLabels,
    penalties: tuple[float, ...],
    path: RidgePath,
    label: int,
) -> LinearProbe:
    """Fit a logistic probe at each penalty; return the one with the least validation loss.

    The fits go from the strongest penalty to the weakest, and each starts from the previous
    optimum.  The first starts from the ridge solution times 4, because a share changes a quarter as
    fast as its logit does (at a share of one half).

    Args:
        train, validation: tokens and their labels.
        penalties: candidate relative penalties.
        path: ridge solutions on the same training tokens; if the labels have offsets, those for the
            shares minus the position term.
        label: column of this label in `path`.
    """
    weight, bias = path.solve(max(penalties))
    # For a foreground share s near 0.5, logit(s) is about 4 (s - 0.5).  The first fit therefore
    # starts from 4 times the weight and bias of the ridge solution, after subtracting 0.5 from
    # the bias.  With a position term (offsets), the ridge solution predicts the shares minus that
    # term, which are near 0 already, so 0.5 is not subtracted.
    middle = 0.5 if train.offset is None else 0.0
    start = 4 * weight[:, label], 4 * (float(bias[label]) - middle)
    best: tuple[float, LinearProbe] | None = None
    solver, validation = LogisticPath(train.widened()), validation.widened()
    for penalty in sorted(penalties, reverse=True):
        start = solver.solve(penalty * path.unit, start)
        loss = logistic_loss(validation, *start)
        if best is None or loss < best[0]:
            best = loss, LinearProbe(start[0], start[1], penalty)
        elif loss > best[0] * 1.02:
            # Stop, because the validation loss rises: the probe overfits, and would overfit more at
            # the weaker penalties that remain.
            break
    if best is None:
        raise ValueError("probes.penalties: no penalty (empty list). Fix: give at least one.")
    return best[1]
