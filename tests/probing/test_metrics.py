"""Metrics against scipy and scikit-learn, their edge cases, and the block shortcut against both."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, jaccard_score

from ldmprobe_core.probing import block_scores, metrics, ranks


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_masks_equal_scikit_learn(rng):
    a, b = rng.random((6, 12, 8)) > 0.6, rng.random((6, 12, 8)) > 0.4
    for i in range(6):
        assert metrics.dice(a, b)[i] == pytest.approx(f1_score(b[i].ravel(), a[i].ravel()))
        assert metrics.iou(a, b)[i] == pytest.approx(jaccard_score(b[i].ravel(), a[i].ravel()))


def test_correlations_equal_scipy_with_ties(rng):
    a = rng.integers(0, 7, (5, 9, 6)).astype(float)
    b = a + rng.normal(0, 3, (5, 9, 6)).round()
    for i in range(5):
        x, y = a[i].ravel(), b[i].ravel()
        assert metrics.spearman(a, b)[i] == pytest.approx(stats.spearmanr(x, y).statistic)
        assert metrics.pearson(a, b)[i] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert metrics.rmse(a, b)[i] == pytest.approx(np.sqrt(((x - y) ** 2).mean()))


def test_ranks_without_ties_equal_scipys(rng):
    values = rng.random((4, 5, 7))
    expected = stats.rankdata(values.reshape(4, -1), axis=1)
    np.testing.assert_array_equal(ranks.mean_ranks(values.reshape(4, -1)), expected)


@pytest.mark.parametrize("ranks", [ranks.mean_ranks, ranks.ranks_of_float16])
def test_ranks_of_halves_equal_scipys_at_the_ends_of_their_range_too(rng, ranks):
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


def test_many_halves_are_counted(rng):
    values = rng.normal(0, 1, (2, ranks.COUNTING_SORT_PIXELS)).astype(np.float16)
    expected = stats.rankdata(values.astype(np.float64), axis=1)
    np.testing.assert_array_equal(ranks.mean_ranks(values), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_a_headline_is_what_scipy_and_scikit_learn_say(dtype, rng):
    truth = rng.normal(0, 1, (5, 9, 6)).round(1)
    seen = (truth + rng.normal(0, 1, truth.shape)).round(1).astype(dtype)
    truth[1], seen[2], seen[3, 4, 4] = 0.5, 0.5, np.nan
    found = metrics.HeadlineScorer("depth", truth).score(seen)
    assert np.isnan(found).tolist() == [False, True, True, True, False]
    for i in (0, 4):
        expected = stats.spearmanr(truth[i].ravel(), seen[i].ravel()).statistic
        assert found[i] == pytest.approx(expected, abs=1e-12)
    masks, own = seen > 0, truth > 0.2
    for i, value in enumerate(metrics.HeadlineScorer("foreground", own).score(masks)):
        assert value == pytest.approx(f1_score(own[i].ravel(), masks[i].ravel(), zero_division=1))


def test_rows_with_and_without_ties_side_by_side_equal_scipys(rng):
    truth = rng.normal(size=(5, 8, 9))
    predicted = rng.normal(size=(5, 8, 9))
    predicted[1] = predicted[1].round(1)  # ties
    predicted[2] = 0.5  # constant
    predicted[3, 0, 0] = np.nan
    found = metrics.HeadlineScorer("depth", truth).score(predicted)
    for row in (0, 1, 4):
        expected = stats.spearmanr(predicted[row].ravel(), truth[row].ravel()).statistic
        assert found[row] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[[2, 3]]).all()
    np.testing.assert_allclose(metrics.spearman(predicted, truth), found, atol=1e-12)


def test_empty_masks():
    empty, full = np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    for score in (metrics.dice, metrics.iou):
        assert score(empty, empty)[0] == 1
        assert score(full, empty)[0] == 0
        assert score(empty, full)[0] == 0
        assert score(full, full)[0] == 1


def test_constant_maps_are_undefined(rng):
    constant, other = np.full((1, 4, 4), 0.1), rng.random((1, 4, 4))
    for score in (metrics.pearson, metrics.spearman):
        assert np.isnan(score(constant, other)[0])
        assert np.isnan(score(other, constant)[0])
        assert not np.isnan(score(other, other)[0])


def test_not_finite_is_undefined_and_only_there(rng):
    a, b = rng.random((3, 4, 4)), rng.random((3, 4, 4))
    a[1, 2, 2] = np.nan
    for score in (metrics.pearson, metrics.spearman):
        assert np.isnan(score(a, b)).tolist() == [False, True, False]


@pytest.mark.parametrize("prop", ["depth", "shading"])
@pytest.mark.parametrize("grid", [(4, 3), (2, 6), (8, 12)])
def test_block_scores_of_maps_equal_scores_at_full_size(prop, grid, rng):
    truth = rng.random((5, 8, 12)).round(1)  # rounded, so that there are ties
    mean_map = rng.random((8, 12))
    tokens = rng.random((5, *grid)).round(1)
    tokens[0] = 0.5  # a constant prediction
    truth[1] = 0.25  # a constant label
    big = tokens.repeat(8 // grid[0], 1).repeat(12 // grid[1], 2)
    found = block_scores.BlockScorer(prop, truth, mean_map, grid).scores(tokens)
    for i in range(5):
        p, t = big[i].ravel(), truth[i].ravel()
        rest = p - mean_map.ravel(), t - mean_map.ravel()
        expected = [
            np.nan if i in (0, 1) else stats.spearmanr(p, t).statistic,
            np.nan if i in (0, 1) else stats.pearsonr(p, t).statistic,
            np.sqrt(((p - t) ** 2).mean()),
            stats.spearmanr(*rest).statistic,
            stats.pearsonr(*rest).statistic,
        ]
        np.testing.assert_allclose(found[:, i], expected, atol=1e-12)
    np.testing.assert_allclose(found, metrics.score_maps(prop, big, truth, mean_map), atol=1e-12)


def test_block_scores_of_masks_equal_scikit_learn(rng):
    truth = rng.random((4, 6, 8)) > 0.5
    tokens = rng.random((4, 3, 2)) > 0.5
    truth[0], tokens[0] = False, False
    truth[1], tokens[1] = False, True
    found = block_scores.BlockScorer("foreground", truth, truth.mean(0), (3, 2)).scores(tokens)
    big = tokens.repeat(2, 1).repeat(4, 2)
    assert found[:, 0].tolist() == [1, 1]
    assert found[:, 1].tolist() == [0, 0]
    for i in (2, 3):
        assert found[0, i] == pytest.approx(f1_score(truth[i].ravel(), big[i].ravel()))
        assert found[1, i] == pytest.approx(jaccard_score(truth[i].ravel(), big[i].ravel()))


def test_block_means_of_a_known_map():
    maps = np.arange(16.0).reshape(1, 4, 4)
    assert block_scores.block_means(maps, (2, 2))[0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    with pytest.raises(ValueError, match="do not divide"):
        block_scores.block_means(maps, (3, 2))
