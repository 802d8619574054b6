"""Scores of block-constant predictions against scores at full size."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score

from ldmprobe_core.probing import block_scores, metrics
from ldmprobe_core.probing.label_set import LabelSet


def correlation_of_rests(a, b, covariates):
    """Correlation of two maps less their least-squares fits on the covariates and a constant."""
    design = np.stack([np.ones(a.size), *covariates], axis=1)
    rests = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (a, b)]
    return stats.pearsonr(*rests).statistic


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.mark.parametrize("prop", ["depth", "shading"])
@pytest.mark.parametrize("grid", [(4, 3), (2, 6), (8, 12)])
def test_block_scores_of_maps_equal_scores_at_full_size(prop, grid, rng):
    truth = rng.random((5, 8, 12)).round(1)  # rounded, so that there are ties
    mean_map = rng.random((8, 12))
    tokens = rng.random((5, *grid)).round(1)
    tokens[0] = 0.5  # a constant prediction
    truth[1] = 0.25  # a constant label
    big = tokens.repeat(8 // grid[0], 1).repeat(12 // grid[1], 2)
    pooled = mean_map.reshape(grid[0], 8 // grid[0], grid[1], 12 // grid[1]).mean((1, 3))
    position = mean_map.ravel(), pooled.repeat(8 // grid[0], 0).repeat(12 // grid[1], 1).ravel()
    found = block_scores.BlockScorer(prop, truth, mean_map, grid).scores(tokens)
    for i in range(5):
        p, t = big[i].ravel(), truth[i].ravel()
        undefined, rank = i in (0, 1), stats.rankdata
        expected = [
            np.nan if undefined else stats.spearmanr(p, t).statistic,
            np.nan if undefined else stats.pearsonr(p, t).statistic,
            np.sqrt(((p - t) ** 2).mean()),
            np.nan
            if undefined
            else correlation_of_rests(rank(p), rank(t), [rank(m) for m in position]),
            np.nan if undefined else correlation_of_rests(p, t, position),
        ]
        np.testing.assert_allclose(found[:, i], expected, atol=1e-12)
    at_full_size = metrics.score_maps(prop, big, truth, mean_map, grid)
    np.testing.assert_allclose(found, at_full_size, atol=1e-12)


@pytest.mark.parametrize("prop", ["depth", "foreground"])
@pytest.mark.parametrize("missing", [False, True])
def test_label_sets_with_other_heldout_samples_score_their_own(prop, missing, rng):
    """Sets that share the statistics of label maps give the scores at full size, in any order."""
    truth, mean_map = rng.random((9, 8, 6)).round(2), rng.random((8, 6))
    truth = (truth > 0.5) if prop == "foreground" else truth
    if missing:
        truth = truth.astype(np.float32)
        truth[4, :3] = np.nan
    none = np.arange(0)
    first = LabelSet({prop: truth}, {prop: mean_map}, none, none, np.array([1, 2, 4]))
    for heldout in ([1, 2, 4], [0, 4, 8], [7], [2, 4, 5, 7], [4]):
        labels = replace(first, heldout=np.array(heldout))
        for grid in ((4, 3), (2, 2)):
            tokens = rng.random((len(heldout), *grid))
            found = labels.scorer(prop, grid).scores(tokens, 0.4)
            big = block_scores.upsample(tokens, (8, 6))
            expected = metrics.score_maps(prop, big, truth[heldout], mean_map, grid, 0.4)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    truth = ~truth if truth.dtype == bool else 1 - truth
    other = replace(first, maps={prop: truth}).scorer(prop, (4, 3))
    tokens = rng.random((3, 4, 3))
    expected = metrics.score_maps(
        prop, block_scores.upsample(tokens, (8, 6)), truth[[1, 2, 4]], mean_map, (4, 3), 0.4
    )
    np.testing.assert_allclose(other.scores(tokens, 0.4), expected, rtol=0, atol=1e-12)


def test_block_scores_of_masks_equal_scikit_learn(rng):
    truth = rng.random((4, 6, 8)) > 0.5
    tokens = rng.random((4, 3, 2)) > 0.5
    truth[0], tokens[0] = False, False
    truth[1], tokens[1] = False, True
    found = block_scores.BlockScorer("foreground", truth, truth.mean(0), (3, 2)).scores(tokens)
    big = tokens.repeat(2, 1).repeat(4, 2)
    assert found[:2, 0].tolist() == [1, 1]
    assert found[:2, 1].tolist() == [0, 0]
    assert np.isnan(found[2:, :2]).all()
    for i in (2, 3):
        assert found[0, i] == pytest.approx(f1_score(truth[i].ravel(), big[i].ravel()))
        assert found[1, i] == pytest.approx(jaccard_score(truth[i].ravel(), big[i].ravel()))


@pytest.mark.parametrize("grid", [(3, 2), (6, 8)])
@pytest.mark.parametrize("dtype", [float, bool])
def test_block_scores_of_continuous_masks_equal_scikit_learn(rng, grid, dtype):
    truth = rng.random((4, 6, 8)) > 0.5
    tokens = rng.normal(size=(4, *grid)).round(1)
    tokens = tokens > 0.2 if dtype is bool else tokens
    cut = None if dtype is bool else -0.1
    scorer = block_scores.BlockScorer("foreground", truth, truth.mean(0), grid)
    scores = scorer.scores(tokens, cut)
    big = tokens.repeat(6 // grid[0], 1).repeat(8 // grid[1], 2)
    at_full_size = metrics.score_maps("foreground", big, truth, truth.mean(0), cut=cut)
    for i in range(4):
        label, values = truth[i].ravel(), big[i].ravel()
        region = values if cut is None else values > cut
        expected = [
            f1_score(label, region),
            jaccard_score(label, region),
            roc_auc_score(label, values),
            average_precision_score(label, values),
        ]
        np.testing.assert_allclose(scores[:, i], expected, atol=1e-12)
        np.testing.assert_allclose(at_full_size[:, i], expected, atol=1e-12)


def test_continuous_masks_need_a_cut(rng):
    truth = rng.random((2, 4, 4)) > 0.5
    scorer = block_scores.BlockScorer("foreground", truth, truth.mean(0), (2, 2))
    with pytest.raises(ValueError, match="cut: missing"):
        scorer.scores(rng.random((2, 2, 2)))
    with pytest.raises(ValueError, match="cut: missing"):
        metrics.score_maps("foreground", rng.random((2, 4, 4)), truth, truth.mean(0))


def test_block_means_of_a_known_map():
    maps = np.arange(16.0).reshape(1, 4, 4)
    assert block_scores.block_means(maps, (2, 2))[0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    with pytest.raises(ValueError, match="do not divide"):
        block_scores.block_means(maps, (3, 2))
