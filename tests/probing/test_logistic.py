"""Logistic probes against scikit-learn on pixels, not on blocks."""

import numpy as np
import pytest
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.fitters.logistic import LogisticPath, SoftLabels, logistic_loss

N, GRID, SIZE, CHANNELS = 9, (3, 4), (6, 12), 5


@pytest.fixture
def data():
    """Activations (n, y, x, channel), a mask and a depth map at full size that depend on them."""
    rng = np.random.default_rng(3)
    activations = rng.normal(1, [1, 2, 0.5, 1, 3], (N, *GRID, CHANNELS))
    big = activations.repeat(2, 1).repeat(3, 2)
    signal = big @ np.array([1, -0.5, 2, 0, 0.2])
    depth = signal + rng.normal(0, 1, (N, *SIZE))
    return activations, depth > depth.mean(), depth


def pixel_rows(activations):
    return activations.repeat(2, 1).repeat(3, 2).reshape(-1, CHANNELS)


def token_rows(activations):
    return activations.reshape(-1, CHANNELS)


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_logistic_on_shares_equals_scikit_learn_on_pixels(data, penalty):
    activations, mask, _ = data
    share = block_means(mask, GRID).ravel()
    start = np.zeros(CHANNELS), 0.0
    weight, bias = LogisticPath(SoftLabels(token_rows(activations), share)).solve(
        penalty, start, 1e-14
    )
    pixels = pixel_rows(activations)
    reference = LogisticRegression(C=1 / (penalty * len(pixels)), tol=1e-10, max_iter=10_000)
    reference.fit(pixels, mask.ravel())
    np.testing.assert_allclose(weight, reference.coef_[0], rtol=1e-4, atol=1e-6)
    assert bias == pytest.approx(reference.intercept_[0], rel=1e-4)


def test_logistic_loss_is_the_pixels_mean_cross_entropy(data):
    activations, mask, _ = data
    weight, bias = np.array([0.3, -1, 0.2, 0, 1]), 0.7
    chance = 1 / (1 + np.exp(-(pixel_rows(activations) @ weight + bias)))
    truth = mask.ravel()
    expected = -(truth * np.log(chance) + ~truth * np.log(1 - chance)).mean()
    share = block_means(mask, GRID).ravel()
    assert logistic_loss(SoftLabels(token_rows(activations), share), weight, bias) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_with_offsets_equals_a_minimiser_of_the_cross_entropy(data, weighted):
    activations, mask, _ = data
    x, share = token_rows(activations), block_means(mask, GRID).ravel()
    rng = np.random.default_rng(5)
    offset = rng.normal(0, 1, len(share))
    weight = rng.integers(1, 7, len(share)) if weighted else None
    penalty = 1e-2
    counts = np.ones(len(share)) if weight is None else weight

    def objective(theta):
        logit = x @ theta[:-1] + theta[-1] + offset
        losses = np.logaddexp(0, logit) - share * logit
        return (counts * losses).sum() / counts.sum() + penalty / 2 * (theta[:-1] ** 2).sum()

    expected = optimize.minimize(objective, np.zeros(CHANNELS + 1), tol=1e-14).x
    labels = SoftLabels(x, share, weight, offset)
    found, bias = LogisticPath(labels).solve(penalty, (np.zeros(CHANNELS), 0.0), 1e-14)
    np.testing.assert_allclose([*found, bias], expected, atol=1e-5)
    value = objective(np.append(found, bias)) - penalty / 2 * (found**2).sum()
    assert logistic_loss(labels, found, bias) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_path_of_penalties_from_warm_starts_equals_a_minimiser_at_each_penalty(weighted):
    rng = np.random.default_rng(8)
    x = rng.normal(0.5, 1, (3000, 12)) @ rng.normal(0, 1, (12, 12))
    share = 1 / (1 + np.exp(-x @ rng.normal(0, 0.5, 12) - rng.normal(0, 1, 3000)))
    weight = rng.integers(1, 7, 3000) if weighted else None
    counts = np.ones(3000) if weight is None else weight
    path, start = LogisticPath(SoftLabels(x, share, weight)), (np.zeros(12), 0.0)
    for penalty in (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4):

        def objective(theta, penalty=penalty):
            logit, inner = x @ theta[:-1] + theta[-1], theta[:-1]
            losses = np.logaddexp(0, logit) - share * logit
            slope = counts * (1 / (1 + np.exp(-logit)) - share) / counts.sum()
            gradient = np.append(slope @ x + penalty * inner, slope.sum())
            return counts @ losses / counts.sum() + penalty / 2 * (inner @ inner), gradient

        best = optimize.minimize(objective, np.zeros(13), jac=True, tol=1e-12)
        start = path.solve(penalty, start)
        assert objective(np.append(*start))[0] - best.fun < 1e-9
        exact = path.solve(penalty, start, 1e-18)
        np.testing.assert_allclose([*exact[0], exact[1]], best.x, atol=1e-5)


def test_start_at_the_last_solution_costs_no_pass_over_the_tokens(data):
    activations, mask, _ = data
    path = LogisticPath(SoftLabels(token_rows(activations), block_means(mask, GRID).ravel()))
    solution = path.solve(1e-2, (np.zeros(CHANNELS), 0.0))
    passes = path.passes
    again = path.solve(1e-2, solution)
    assert path.passes == passes
    np.testing.assert_array_equal(again[0], solution[0])
    elsewhere = path.solve(1e-2, (solution[0] + 1, solution[1]))
    assert path.passes > passes
    np.testing.assert_allclose(elsewhere[0], solution[0], rtol=1e-3)
