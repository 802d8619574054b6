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


def test_mean_ranks_of_values_that_are_almost_equal_or_far_apart_equal_scipy(rng):
    """Values that differ by their last bit, and ranges that overflow or underflow."""
    near = 1 + rng.integers(0, 40, 500) * np.finfo(float).eps
    least = np.finfo(float).smallest_subnormal
    wide = rng.normal(0, 1, 500) * 10.0 ** rng.integers(-300, 300, 500)
    values = np.stack([
        near, np.append(near[:-1], 1e300), wide,
        np.resize([-1.7e308, 1.7e308, 0.0, -0.0, 3.0], 500), rng.integers(0, 9, 500) * least,
        np.full(500, -2.5), rng.normal(0, 1, 500), rng.integers(0, 400, 500),
    ])  # fmt: skip
    np.testing.assert_array_equal(ranks.mean_ranks(values), stats.rankdata(values, axis=1))
    for bad in (np.nan, np.inf, -np.inf):
        values[6, 499] = bad
        assert np.isnan(ranks.mean_ranks(values)).all(1).tolist() == [False] * 6 + [True, False]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("pixels", [1, 2, 3, 64, 4097])
def test_mean_ranks_of_any_type_and_number_of_pixels_equal_scipy(dtype, pixels, rng):
    values = (rng.normal(0, 40, (3, pixels)) + 100).astype(dtype)
    np.testing.assert_array_equal(ranks.mean_ranks(values), stats.rankdata(values, axis=1))


def test_correlations_of_large_float16_maps_equal_scipy(rng):
    count = ranks.COUNTING_SORT_PIXELS
    truth = rng.normal(0, 1, (6, count)).round(3).astype(np.float32)
    seen = (truth + rng.normal(0, 1, truth.shape)).astype(np.float16)
    seen[1] = -seen[1]
    seen[2, : count // 2] = np.resize([0.0, -0.0], count // 2)
    seen[3], seen[4, 7], seen[5, 7] = 1.5, np.inf, np.nan
    found = ranks.RankedMaps(truth).correlation(seen)
    assert np.isnan(found).tolist() == [False, False, False, True, True, True]
    for row in range(3):
        expected = stats.spearmanr(seen[row].astype(float), truth[row]).statistic
        assert found[row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_correlations_of_large_maps_equal_scipy_with_and_without_ties(dtype, rng):
    count = ranks.COUNTING_SORT_PIXELS
    truth = rng.normal(0, 1, (7, count)).round(3).astype(np.float32)
    seen = (truth + rng.normal(0, 1, truth.shape)).astype(dtype)
    seen[1] = rng.permutation(count)
    # Values of equal and of almost equal size, and a row of which one value is far away.
    seen[2, 5], seen[3, : count // 2] = seen[2, 9], seen[3, 0]
    seen[4] = np.nextafter(np.ones(1, dtype), 2) * np.where(truth[4] > 0, 1, 1 + 1e-6)
    seen[5, 0] = 1e30
    seen[6, 7] = np.nan
    found = ranks.RankedMaps(truth).correlation(seen)
    assert np.isnan(found).tolist() == [False] * 6 + [True]
    for row in range(6):
        expected = stats.spearmanr(seen[row], truth[row]).statistic
        assert found[row] == pytest.approx(expected, abs=1e-12)


def test_correlations_with_a_map_that_is_constant_or_not_finite_are_undefined(rng):
    count = ranks.COUNTING_SORT_PIXELS
    for dtype in (np.float16, np.float32):
        truth = rng.normal(0, 1, (3, count)).astype(dtype)
        truth[0], truth[1, 3] = 1.5, np.nan
        ranked = ranks.RankedMaps(truth)
        found = ranked.correlation(rng.random((3, count)))
        assert np.isnan(found).tolist() == [True, True, False]
        assert np.isnan(ranked.centred[1]).all()
        expected = stats.rankdata(truth[2].astype(float)) - (count + 1) / 2
        np.testing.assert_array_equal(ranked.centred[2], expected.astype(np.float32))
        assert ranked.deviation[2] == pytest.approx(expected.std(), rel=1e-13)


def test_correlations_with_one_map_equal_scipy_for_the_rows_asked_for(rng):
    maps, other = rng.random((6, 200)).round(2), rng.random(200).round(2)
    maps[3] = 0.5
    ranked = ranks.RankedMaps(maps, np.array([4]))
    for rows in ([4, 1], [3], [5, 0, 5], []):
        found = ranked.correlation_with_one(other, np.array(rows, int))
        expected = [np.nan if i == 3 else stats.spearmanr(maps[i], other).statistic for i in rows]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.isnan(ranked.deviation).tolist() == [False, False, True, True, False, False]
