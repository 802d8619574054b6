"""Linear probes: ridge from sufficient statistics, logistic regression, the paper's Adam protocol.

A probe maps a token's channels to a property of the token's block of pixels.  Its prediction,
upsampled by nearest, is constant on the block; so squared error against the full-size map differs
from squared error against the block's mean label only by a factor and a constant, and
cross-entropy against the full-size mask equals cross-entropy against the block's foreground share.
Both fits are therefore exact on tokens, with as many rows fewer as a block has pixels.

Penalties are relative: an L2 penalty p means ``p x v``, v the mean variance of a channel over the
training tokens, in an objective that is a *mean* over pixels.  So one list serves every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from torch.nn import functional as F

_ROWS_AT_ONCE = 1 << 17


def serves(kind: str, prop: str) -> bool:
    """A kind of probe is fitted to this property: logistic to masks, the others to every map."""
    return kind != "logistic" or prop == "foreground"


def foreground_cut(kind: str) -> float:
    """Foreground is where a probe of this kind predicts more: half, of a share or as a logit."""
    return 0.5 if kind == "ridge" else 0.0


@dataclass(frozen=True)
class Probe:
    """prediction = activation . weight + bias.

    Attributes:
        weight: (channel,) float64.
        bias: scalar.
        penalty: the relative penalty it was fitted with; NaN where there is none.
    """

    weight: np.ndarray
    bias: float
    penalty: float

    def predict(self, activations: np.ndarray) -> np.ndarray:
        """Predictions (n, y, x) float64 from activations (n, y, x, channel)."""
        channels = activations.shape[-1]
        rows = activations.reshape(-1, channels)
        parts = [part @ self.weight for part in _row_blocks(rows)]
        return (np.concatenate(parts) + self.bias).reshape(activations.shape[:-1])


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of tokens for least squares; they add up over samples and workers.

    Attributes:
        n: tokens.
        x: sum of activations (channel,).
        y: sum of labels (label,).
        xx, xy: sums of products (channel, channel), (channel, label).
        yy: sum of squared labels (label,).
    """

    n: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Moments:
        """Statistics of activations (token, channel) and labels (token, label), in float64."""
        total: Moments | None = None
        for rows, labels in zip(_row_blocks(x), _row_blocks(y), strict=True):
            part = cls(
                len(rows),
                rows.sum(0),
                labels.sum(0),
                rows.T @ rows,
                rows.T @ labels,
                np.square(labels).sum(0),
            )
            total = part if total is None else total + part
        if total is None:
            raise ValueError("no tokens to take statistics of")
        return total

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def error(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Mean squared error (label,) of predictions x . weight + bias; weight (channel, label)."""
        squared = self.yy + np.einsum("ck,cd,dk->k", weight, self.xx, weight) + self.n * bias**2
        cross = np.einsum("ck,ck->k", weight, self.xy) + bias * self.y
        return (squared - 2 * cross + 2 * bias * (self.x @ weight)) / self.n


@dataclass(frozen=True)
class RidgePath:
    """Ridge solutions for every penalty, from one eigendecomposition.

    Minimises mean (y - x.w - b)² + p v |w|² (bias unpenalised), v the mean channel variance.  The
    same optimum as scikit-learn's ``Ridge(alpha=p v N)`` on N pixels.
    """

    mean_x: np.ndarray
    mean_y: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    turned_xy: np.ndarray

    @classmethod
    def of(cls, moments: Moments) -> RidgePath:
        """Decompose the channels' covariance."""
        mean_x, mean_y = moments.x / moments.n, moments.y / moments.n
        covariance = moments.xx / moments.n - np.outer(mean_x, mean_x)
        values, vectors = np.linalg.eigh(covariance)
        cross = moments.xy / moments.n - np.outer(mean_x, mean_y)
        return cls(mean_x, mean_y, np.maximum(values, 0), vectors, vectors.T @ cross)

    @property
    def unit(self) -> float:
        """Mean channel variance, the unit of penalties; 1 where the layer is constant."""
        return float(self.values.mean()) or 1.0

    def solve(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Weight (channel, label) and bias (label,) at a relative penalty > 0."""
        scale = self.values + penalty * self.unit
        weight = self.vectors @ (self.turned_xy / scale[:, None])
        return weight, self.mean_y - self.mean_x @ weight


def fit_ridge(train: Moments, validation: Moments, penalties: tuple[float, ...]) -> list[Probe]:
    """One ridge probe a label, each at the penalty with the least validation error."""
    path = RidgePath.of(train)
    solutions = [path.solve(penalty) for penalty in penalties]
    errors = np.stack([validation.error(*solution) for solution in solutions])
    probes = []
    for label, best in enumerate(errors.argmin(0)):
        weight, bias = solutions[best]
        probes.append(Probe(weight[:, label], float(bias[label]), penalties[best]))
    return probes


def logistic_loss(x: np.ndarray, share: np.ndarray, weight: np.ndarray, bias: float) -> float:
    """Mean cross-entropy of logits x . weight + bias against soft labels in 0..1."""
    total = 0.0
    for rows, target in zip(_row_blocks(x), _row_blocks(share), strict=True):
        logit = rows @ weight + bias
        total += float((np.logaddexp(0, logit) - target * logit).sum())
    return total / len(x)


def solve_logistic(
    x: np.ndarray,
    share: np.ndarray,
    penalty: float,
    start: tuple[np.ndarray, float],
    tolerance: float = 1e-9,
    iterations: int = 50,
) -> tuple[np.ndarray, float]:
    """Minimise mean cross-entropy + penalty / 2 |w|² (bias unpenalised) by Newton's method.

    The same optimum as scikit-learn's ``LogisticRegression(C=1 / (penalty N))`` on N pixels.

    Args:
        x: (token, channel); share: (token,) in 0..1.
        penalty: absolute, > 0.
        start: weight and bias to begin from.
        tolerance: on the Newton decrement, half of which bounds the distance to the minimum.
    """
    weight, bias = start[0].copy(), start[1]
    channels = len(weight)
    ridge = np.append(np.full(channels, penalty), 0.0)

    def objective(w: np.ndarray, b: float) -> float:
        return logistic_loss(x, share, w, b) + penalty / 2 * float(w @ w)

    value = objective(weight, bias)
    for _ in range(iterations):
        gradient = np.zeros(channels + 1)
        hessian = np.zeros((channels + 1, channels + 1))
        for rows, target in zip(_row_blocks(x), _row_blocks(share), strict=True):
            chance = expit(rows @ weight + bias)
            slope = chance - target
            gradient[:-1] += rows.T @ slope
            gradient[-1] += slope.sum()
            # The Hessian only steers the step: in float32 it costs a third and moves no optimum.
            single, curve = rows.astype(np.float32), (chance * (1 - chance)).astype(np.float32)
            bent = single * curve[:, None]
            hessian[:-1, :-1] += single.T @ bent
            hessian[:-1, -1] += bent.sum(0)
            hessian[-1, -1] += curve.sum()
        hessian[-1, :-1] = hessian[:-1, -1]
        gradient = gradient / len(x) + ridge * np.append(weight, 0.0)
        # A trace of damping keeps the bias solvable where every prediction is already certain.
        hessian = hessian / len(x) + np.diag(ridge + 1e-12)
        step = np.linalg.solve(hessian, gradient)
        decrement = float(gradient @ step)
        if decrement < tolerance:
            break
        size = 1.0
        while size > 1e-8:
            trial = objective(weight - size * step[:-1], bias - size * step[-1])
            if trial <= value - 1e-4 * size * decrement:
                break
            size /= 2
        weight, bias = weight - size * step[:-1], float(bias - size * step[-1])
        value = objective(weight, bias)
    return weight, bias


def fit_logistic(
    x: np.ndarray,
    share: np.ndarray,
    validation_x: np.ndarray,
    validation_share: np.ndarray,
    penalties: tuple[float, ...],
    path: RidgePath,
    label: int,
) -> Probe:
    """Logistic probe at the penalty with the least validation cross-entropy.

    The path goes from the strongest penalty to the weakest, each from the last one's optimum, the
    first from the ridge solution (a share's slope is a quarter of its logit's).

    Args:
        path: of the same training tokens; `label` is the foreground's column in it.
    """
    x, validation_x = x.astype(np.float64), validation_x.astype(np.float64)
    weight, bias = path.solve(max(penalties))
    start = 4 * weight[:, label], 4 * (float(bias[label]) - 0.5)
    best: tuple[float, Probe] | None = None
    for penalty in sorted(penalties, reverse=True):
        start = solve_logistic(x, share, penalty * path.unit, start)
        loss = logistic_loss(validation_x, validation_share, *start)
        if best is None or loss < best[0]:
            best = loss, Probe(start[0], start[1], penalty)
        elif loss > best[0] * 1.02:
            break  # weaker penalties only fit the training tokens further
    assert best is not None
    return best[1]


def fit_adam(
    activations: np.ndarray,
    target: np.ndarray,
    foreground: bool,
    seed: int = 0,
    epochs: int = 30,
    batch: int = 4,
    learning_rate: float = 1e-3,
) -> Probe:
    """The paper's protocol: one linear layer, nearest upsampling, Adam, full-size loss.

    Foreground: two logits without bias under cross-entropy; else one value under Huber's loss with
    delta 1 (Chen, Viegas & Wattenberg 2023, section 3 and their code).

    Args:
        activations: (n, y, x, channel).
        target: (n, Y, X), bool for foreground, else values.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(activations.astype(np.float32)).permute(0, 3, 1, 2)
    y = torch.from_numpy(target.astype(np.int64 if foreground else np.float32))
    channels = x.shape[1]
    bound = channels**-0.5  # torch.nn.Linear's own initialisation
    outputs = 2 if foreground else 1
    weight = torch.empty(outputs, channels).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
    parameters = [weight.requires_grad_()] + ([] if foreground else [bias.requires_grad_()])
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch):
            output = torch.einsum("ncyx,kc->nkyx", x[index], weight)
            if not foreground:
                output = output + bias[:, None, None]
            output = F.interpolate(output, size=tuple(y.shape[1:]), mode="nearest")
            if foreground:
                loss = F.cross_entropy(output, y[index])
            else:
                loss = F.huber_loss(output[:, 0], y[index], delta=1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    fitted = weight.detach().double().numpy()
    if foreground:
        return Probe(fitted[1] - fitted[0], 0.0, float("nan"))
    return Probe(fitted[0], float(bias.detach()), float("nan"))


def _row_blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in float64, a bounded number at a time."""
    for a in range(0, len(rows), _ROWS_AT_ONCE):
        yield rows[a : a + _ROWS_AT_ONCE].astype(np.float64, copy=False)
