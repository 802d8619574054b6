"""Partial correlations against explicit regressions at full size."""

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr

from ldmprobe_core.probing.partial import (
    BlockPartialScorer,
    partial_pearson,
    partial_spearman,
    position_covariates,
)


def by_regression(predicted, truth, covariates):
    """Correlation of the residuals of two least-squares fits, with an intercept."""
    design = np.stack([np.ones(predicted.size), *(c.ravel() for c in covariates)], axis=1)

    def residual(values):
        return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]

    return pearsonr(residual(predicted.ravel()), residual(truth.ravel())).statistic


def ranks(values):
    return rankdata(values.ravel()).reshape(values.shape)


def maps(n=5, size=(8, 12)):
    """Predictions and labels (n, y, x) that follow a mean map in part, and the mean map."""
    rng = np.random.default_rng(0)
    mean = np.linspace(0, 1, size[0])[:, None] + 0.3 * rng.random(size)
    truth = mean + 0.4 * rng.standard_normal((n, *size))
    predicted = 0.5 * truth + 0.5 * mean + 0.5 * rng.standard_normal((n, *size))
    return predicted, truth, mean


def test_partial_pearson_is_the_correlation_of_residuals():
    predicted, truth, mean = maps()
    expected = [by_regression(p, t, [mean]) for p, t in zip(predicted, truth, strict=True)]
    np.testing.assert_allclose(partial_pearson(predicted, truth, mean[None]), expected, atol=1e-12)


def test_partial_spearman_is_the_correlation_of_rank_residuals():
    predicted, truth, mean = maps()
    predicted, truth = predicted.round(1), truth.round(1)  # with ties
    expected = [
        by_regression(ranks(p), ranks(t), [ranks(mean)])
        for p, t in zip(predicted, truth, strict=True)
    ]
    np.testing.assert_allclose(partial_spearman(predicted, truth, mean[None]), expected, atol=1e-12)


@pytest.mark.parametrize("grid", [(8, 12), (4, 6), (4, 4), (2, 3), (1, 4)])
@pytest.mark.parametrize("ranked", [True, False])
def test_block_scorer_equals_a_regression_on_upsampled_maps(grid, ranked):
    _, truth, mean = maps(n=4)
    tokens = np.random.default_rng(1).standard_normal((4, *grid))
    block = 8 // grid[0], 12 // grid[1]

    def upsampled(values):
        return np.kron(values, np.ones(block))

    pooled = mean.reshape(grid[0], block[0], grid[1], block[1]).mean((1, 3))
    transform = ranks if ranked else np.asarray
    covariates = [transform(mean), transform(upsampled(pooled))]
    expected = [
        by_regression(transform(upsampled(p)), transform(t), covariates)
        for p, t in zip(tokens, truth, strict=True)
    ]
    labels = np.stack([transform(t) for t in truth])
    scores = BlockPartialScorer(labels, mean, grid, ranks=ranked).scores(tokens)
    np.testing.assert_allclose(scores, expected, atol=1e-10)
    full = partial_spearman if ranked else partial_pearson
    big = np.stack([upsampled(p) for p in tokens])
    at_full_size = full(big, truth, position_covariates(mean, grid))
    np.testing.assert_allclose(at_full_size, expected, atol=1e-10)


@pytest.mark.parametrize("ranked", [True, False])
def test_position_alone_has_no_partial_score(ranked):
    _, truth, mean = maps(n=3)
    pooled = mean.reshape(4, 2, 4, 3).mean((1, 3))
    labels = np.stack([ranks(t) for t in truth]) if ranked else truth
    scorer = BlockPartialScorer(labels, mean, (4, 4), ranks=ranked)
    constant = np.ones((3, 4, 4))
    scaled = np.stack([pooled, 3 * pooled - 7, 0.01 * pooled])
    assert np.isnan(scorer.scores(constant)).all()
    assert np.isnan(scorer.scores(scaled)).all()
    full = partial_spearman if ranked else partial_pearson
    assert np.isnan(full(np.stack([mean, 2 * mean + 1, -mean]), truth, mean[None])).all()
    if ranked:  # an increasing function of a map has the same ranks
        assert np.isnan(scorer.scores(np.exp(scaled))).all()


def test_a_constant_mean_map_leaves_the_plain_correlation():
    predicted, truth, _ = maps(n=3)
    flat = np.zeros(truth.shape[1:])
    expected = [
        pearsonr(p.ravel(), t.ravel()).statistic for p, t in zip(predicted, truth, strict=True)
    ]
    np.testing.assert_allclose(partial_pearson(predicted, truth, flat[None]), expected, atol=1e-12)


def test_a_label_that_is_the_mean_map_or_not_finite_is_undefined():
    predicted, truth, mean = maps(n=3)
    truth[0], truth[1, 2, 3] = mean, np.nan
    assert np.isnan(partial_spearman(predicted, truth, mean[None])).tolist() == [True, True, False]
    assert np.isnan(partial_pearson(predicted, truth, mean[None])).tolist() == [True, True, False]


@pytest.mark.parametrize("ranks", [True, False])
def test_partial_scores_with_a_constant_mean_map_are_plain_correlations(ranks):
    rng = np.random.default_rng(8)
    truth, tokens = rng.normal(size=(3, 8, 8)), rng.normal(size=(3, 4, 4))
    labels = np.stack([rankdata(t).reshape(8, 8) for t in truth]) if ranks else truth
    found = BlockPartialScorer(labels, np.ones((8, 8)), (4, 4), ranks=ranks).scores(tokens)
    correlate = spearmanr if ranks else pearsonr
    expected = [
        correlate(p.repeat(2, 0).repeat(2, 1).ravel(), t.ravel()).statistic
        for p, t in zip(tokens, truth, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-9)
