"""Ranks against scipy."""

import numpy as np
import pytest
from scipy import stats

from ldmprobe_core.probing import ranks


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_ranks_without_ties_equal_scipys(rng):
    values = rng.random((4, 5, 7))
    expected = stats.rankdata(values.reshape(4, -1), axis=1)
    np.testing.assert_array_equal(ranks.mean_ranks(values.reshape(4, -1)), expected)


@pytest.mark.parametrize("ranks", [ranks.mean_ranks, ranks.ranks_of_float16])
def test_mean_ranks_of_float16_equal_scipy(rng, ranks):
    odd = [0.0, -0.0, 65504.0, -65504.0, 6e-8, -6e-8, 1.0, 1.001, -1.0, 0.0, 0.1, 0.1]
    values = np.stack([
        np.resize(odd, 600), rng.normal(0, 1, 600), rng.normal(0, 1e-6, 600),
        rng.integers(-3, 3, 600), np.full(600, 7.0),
    ]).astype(np.float16)  # fmt: skip
    expected = stats.rankdata(values.astype(np.float64), axis=1)
    np.testing.assert_array_equal(ranks(values), expected)
    for bad in (np.nan, np.inf, -np.inf):
        values[1, 3] = bad
        assert np.isnan(ranks(values)).all(1).tolist() == [False, True] + [False] * 3


def test_mean_ranks_count_large_float16_maps(rng):
    values = rng.normal(0, 1, (2, ranks.COUNTING_SORT_PIXELS)).astype(np.float16)
    expected = stats.rankdata(values.astype(np.float64), axis=1)
    np.testing.assert_array_equal(ranks.mean_ranks(values), expected)
