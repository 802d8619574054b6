"""Metrics against scipy and scikit-learn, and their edge cases."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, jaccard_score

from ldmprobe_core.errors import UserError
from ldmprobe_core.probing import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_mask_metrics_equal_scikit_learn(rng):
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


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_headline_metric_equals_scipy_and_scikit_learn(dtype, rng):
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


def test_spearman_of_rows_with_and_without_ties_equals_scipy(rng):
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


@pytest.mark.parametrize("prop", ["foreground", "depth"])
def test_headline_scores_of_parts_are_those_of_all(prop, rng):
    truth, predicted = rng.normal(size=(2, 5, 8, 9))
    if prop == "foreground":
        truth, predicted = truth > 0, predicted > 0
    scorer = metrics.HeadlineScorer(prop, truth)
    parts = [scorer.score(predicted[part], part.start) for part in (slice(0, 2), slice(2, 5))]
    whole = metrics.score_maps(prop, predicted, truth, np.ones((8, 9)))[0]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-12)


def test_mask_metrics_of_empty_masks():
    empty, full = np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    for score in (metrics.dice, metrics.iou):
        assert score(empty, empty)[0] == 1
        assert score(full, empty)[0] == 0
        assert score(empty, full)[0] == 0
        assert score(full, full)[0] == 1


def test_map_metrics_of_constant_maps_are_undefined(rng):
    constant, other = np.full((1, 4, 4), 0.1), rng.random((1, 4, 4))
    for score in (metrics.pearson, metrics.spearman):
        assert np.isnan(score(constant, other)[0])
        assert np.isnan(score(other, constant)[0])
        assert not np.isnan(score(other, other)[0])


def test_metrics_of_non_finite_rows_alone_are_undefined(rng):
    a, b = rng.random((3, 4, 4)), rng.random((3, 4, 4))
    a[1, 2, 2] = np.nan
    for score in (metrics.pearson, metrics.spearman):
        assert np.isnan(score(a, b)).tolist() == [False, True, False]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("prop", ["foreground", "depth"])
def test_one_prediction_of_all_images_is_scored_as_a_copy_for_each(prop, missing, rng):
    truth = rng.random((4, 8, 6))
    truth = (truth > 0.5) if prop == "foreground" else truth.astype(np.float16)
    if missing:
        truth = truth.astype(np.float32)
        truth[1, :2] = np.nan
    one, mean_map = rng.random((1, 8, 6)).round(2), rng.random((8, 6))
    cut = 0.4 if prop == "foreground" else None
    copies = metrics.score_maps(prop, one.repeat(4, 0), truth, mean_map, cut=cut)
    found = metrics.score_maps(prop, one, truth, mean_map, cut=cut)
    np.testing.assert_allclose(found, copies, rtol=0, atol=1e-12)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["dice", "iou"])
def test_masks_that_are_not_bool_are_refused(name):
    """As integers, 1 and 255 have one bit in common."""
    metric = getattr(metrics, name)
    mask = np.arange(16).reshape(1, 4, 4) > 7
    for other in (mask * 255, mask.astype(float)):
        with pytest.raises(UserError, match=r"^truth: it is no bool mask .*Fix: cut it"):
            metric(mask, other)
        with pytest.raises(UserError, match=r"^predicted: it is no bool mask .*Fix: cut it"):
            metric(other, mask)


@pytest.mark.parametrize("name", ["dice", "iou", "pearson", "spearman", "rmse"])
def test_maps_of_other_images_are_refused(name):
    metric = getattr(metrics, name)
    maps = np.arange(48).reshape(3, 4, 4) % 5 > 1
    maps = maps if name in ("dice", "iou") else maps.astype(float)
    assert metric(maps[:1], maps).shape == (3,)
    for other in (maps[:1], maps[:2], maps[:, :2]):
        with pytest.raises(UserError, match=r"^truth: its shape is not that of the predictions"):
            metric(maps, other)
