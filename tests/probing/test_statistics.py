"""Sufficient statistics against numpy."""

import numpy as np
import pytest

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


def token_rows(activations):
    return activations.reshape(-1, CHANNELS)


def test_sufficient_statistics_add_up(data):
    activations, _, depth = data
    x, y = token_rows(activations), block_means(depth, GRID).reshape(-1, 1)
    whole, parts = (
        SufficientStatistics.from_tokens(x, y),
        SufficientStatistics.from_tokens(x[:40], y[:40])
        + SufficientStatistics.from_tokens(x[40:], y[40:]),
    )
    for name in ("n", "x", "y", "xx", "xy", "yy"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    weight, bias = np.linspace(-1, 1, CHANNELS)[:, None], np.array([0.4])
    direct = ((y[:, 0] - x @ weight[:, 0] - 0.4) ** 2).mean()
    assert whole.error(weight, bias)[0] == pytest.approx(direct)
    with pytest.raises(ValueError, match="no tokens"):
        RidgePath.from_statistics(SufficientStatistics.from_tokens(x[:0], y[:0]))


def test_total_of_parts_equals_the_sums_of_all_tokens(data):
    activations, _, depth = data
    x, y = token_rows(activations), block_means(depth, GRID).reshape(-1, 1)
    at = np.arange(len(x)) % 12
    parts = [
        SufficientStatistics.from_tokens(x[i::3], y[i::3], None, at[i::3], 12) for i in range(3)
    ]
    before = [part.gram.copy() for part in parts]
    total = SufficientStatistics.total(parts)
    rows = np.column_stack([x, np.ones(len(x)), y])
    np.testing.assert_allclose(total.gram, rows.T @ rows, rtol=1e-12, atol=1e-12)
    of_positions = [rows[at == position].sum(0) for position in range(12)]
    np.testing.assert_allclose(total.by_position, of_positions, rtol=1e-12)
    assert all(np.array_equal(p.gram, b) for p, b in zip(parts, before, strict=True))
    alone = SufficientStatistics.total([SufficientStatistics.from_tokens(x, y)])
    assert alone.by_position is None


def test_sufficient_statistics_of_float16_equal_numpy():
    """More rows than go at once, in float16, with a mean far from zero."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(5000, 7)) * 0.5 + 20).astype(np.float16)
    y = rng.normal(size=(5000, 2))
    rows = np.column_stack([x.astype(float), np.ones(5000), y])
    found = SufficientStatistics.from_tokens(x, y)
    np.testing.assert_allclose(found.gram, rows.T @ rows, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(float).T, bias=True), rtol=1e-9)
