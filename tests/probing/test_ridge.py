"""Ridge probes against scikit-learn on pixels, not on blocks."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.fitters.ridge import RidgePath
from ldmprobe_core.probing.statistics import SufficientStatistics

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


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_ridge_on_block_means_equals_scikit_learn_on_pixels(data, penalty):
    activations, _, depth = data
    x, y = token_rows(activations), block_means(depth, GRID).reshape(-1, 1)
    path = RidgePath.from_statistics(SufficientStatistics.from_tokens(x, y))
    weight, bias = path.solve(penalty)
    pixels = pixel_rows(activations)
    unit = token_rows(activations).var(0).mean()
    assert path.unit == pytest.approx(unit)
    reference = Ridge(alpha=penalty * unit * len(pixels)).fit(pixels, depth.ravel())
    np.testing.assert_allclose(weight[:, 0], reference.coef_, rtol=1e-8)
    assert bias[0] == pytest.approx(reference.intercept_)


def test_ridge_with_a_negligible_penalty_gives_the_least_norm_solution():
    """A layer of rank one: without a penalty to speak of, no Cholesky factor exists."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=400)
    x = np.outer(signal, [3.0, 1.0, 2.0, 0.1])
    weight, bias = RidgePath.from_statistics(
        SufficientStatistics.from_tokens(x, signal[:, None])
    ).solve(1e-30)
    expected = np.linalg.pinv(x, rcond=1e-8) @ signal
    np.testing.assert_allclose(x @ weight[:, 0] + bias[0], signal, atol=1e-4)
    np.testing.assert_allclose(weight[:, 0], expected, atol=1e-4)


def test_ridge_on_a_constant_layer_gives_the_mean_label():
    x, y = np.ones((8, 3)), np.arange(8.0)[:, None]
    weight, bias = RidgePath.from_statistics(SufficientStatistics.from_tokens(x, y)).solve(1e-3)
    np.testing.assert_allclose(weight, 0, atol=1e-12)
    assert bias[0] == pytest.approx(3.5)
