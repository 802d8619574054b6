"""AUROC, average precision and cuts against scikit-learn and loops over pixels."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ldmprobe_core.probing.detection import (
    auroc,
    average_precision,
    best_cut,
    dice_at,
    position_cut,
    quantiles,
)

BLOCK = 6


def blocks(n=6, tokens=20, decimals=1):
    """Predictions with ties, masks of BLOCK pixels a token, and their shares."""
    rng = np.random.default_rng(1)
    masks = rng.random((n, tokens, BLOCK)) < rng.random((n, tokens, 1))
    predicted = (masks.mean(2) + rng.standard_normal((n, tokens))).round(decimals)
    return predicted, masks, masks.mean(2)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(auroc, roc_auc_score), (average_precision, average_precision_score)]
)
def test_auroc_and_average_precision_equal_scikit_learn_on_pixels(ours, theirs):
    predicted, masks, share = blocks()
    expected = [
        theirs(mask.ravel(), np.repeat(p, BLOCK)) for p, mask in zip(predicted, masks, strict=True)
    ]
    np.testing.assert_allclose(ours(predicted, share), expected, atol=1e-12)


def test_auroc_and_average_precision_of_empty_and_full_masks_are_undefined():
    share = np.array([[0.0, 0, 0], [1, 1, 1], [0.5, 0, 1]])
    predicted = np.array([[1.0, 2, 3], [1, 2, 3], [np.nan, 2, 3]])
    assert np.isnan(auroc(predicted, share)).all()
    assert np.isnan(average_precision(predicted, share)).all()


def test_auroc_and_average_precision_of_a_constant_equal_chance():
    share = np.array([[0.2, 0.4, 0.0]])
    constant = np.ones((1, 3))
    assert auroc(constant, share) == pytest.approx(0.5)
    assert average_precision(constant, share) == pytest.approx(0.2)


def test_dice_at_equals_f1_of_pixels():
    predicted, masks, share = blocks(decimals=3)
    cuts = np.array([-0.5, 0.2, 0.9])
    expected = [
        [
            f1_score(mask.ravel(), np.repeat(p, BLOCK) > cut)
            for p, mask in zip(predicted, masks, strict=True)
        ]
        for cut in cuts
    ]
    np.testing.assert_allclose(dice_at(predicted, share, cuts), expected, atol=1e-12)
    assert dice_at(np.zeros((1, 3)), np.zeros((1, 3)), np.array([1.0])) == 1


def test_dice_at_with_weights_equals_f1_of_measured_pixels():
    predicted, masks, _ = blocks(decimals=3)
    known = np.random.default_rng(2).random(masks.shape) < 0.6
    known[0, 0] = False
    weight = known.sum(2)
    with np.errstate(invalid="ignore"):
        share = (masks & known).sum(2) / weight
    cuts = np.array([-0.5, 0.2, 0.9])
    for rows in (predicted, predicted[:1]):
        everywhere = np.broadcast_to(rows, predicted.shape)
        expected = [
            [
                f1_score(mask[k], np.repeat(p, BLOCK).reshape(mask.shape)[k] > cut)
                for p, mask, k in zip(everywhere, masks, known, strict=True)
            ]
            for cut in cuts
        ]
        np.testing.assert_allclose(dice_at(rows, share, cuts, weight), expected, atol=1e-12)


def test_best_cut_is_invariant_to_scale_and_as_good_as_a_fine_search():
    predicted, _, share = blocks(n=30, decimals=9)
    cut = best_cut(predicted, share)
    fine = np.linspace(predicted.min() - 1, predicted.max(), 4000)
    reached = dice_at(predicted, share, np.array([cut])).mean()
    assert reached >= dice_at(predicted, share, fine).mean(1).max() - 0.003
    assert best_cut(100 * predicted - 7, share) == pytest.approx(100 * cut - 7)


def test_best_cut_can_take_everything_and_skips_what_is_not_finite():
    predicted = np.array([[0.1, 0.2, 0.3], [np.nan, 1, 1]])
    share = np.array([[1.0, 1, 1], [0, 0, 0]])
    cut = best_cut(predicted, share)
    assert (predicted[0] > cut).all()
    assert best_cut(predicted[1:], share[1:]) == 0.0


def test_best_cut_can_take_nothing_where_most_masks_are_empty():
    rng = np.random.default_rng(3)
    predicted = rng.standard_normal((10, 100)).astype(np.float32)
    share = np.zeros((10, 100))
    share[:3, :5] = 1.0
    # All images but the three with foreground score 1 if nothing is predicted.
    cut = best_cut(predicted, share)
    assert not (predicted > cut).any()
    assert dice_at(predicted, share, np.array([cut])).mean() == pytest.approx(0.7)
    # With foreground in every image, no image is scored 1 for an empty prediction.
    share[3:, 0] = 1.0
    assert (predicted > best_cut(predicted, share)).any()


def test_position_alone_predicts_nothing_where_most_masks_are_empty():
    # All three masks have the pixel (4, 4), so that a cut below the mean's maximum takes a pixel.
    masks = np.zeros((10, 16, 16), bool)
    masks[0, :8], masks[1, :, :8], masks[2, 4, 4] = True, True, True
    mean = masks.mean(0)
    assert not (mean > position_cut(mean, masks)).any()


def test_best_cut_takes_a_quantile_that_is_as_good_as_predicting_nothing():
    # One image is predicted well by any cut from 0.1 to 0.9, the other is empty but predicted 0.9.
    predicted = np.array([[0.1, 0.9], [0.9, 0.1]])
    share = np.array([[0.0, 1.0], [0.0, 0.0]])
    assert dice_at(predicted, share, np.array([0.1, 0.9])).mean(1) == pytest.approx([0.5, 0.5])
    assert best_cut(predicted, share) < 0.9


@pytest.mark.parametrize(
    ("ours", "theirs"), [(auroc, roc_auc_score), (average_precision, average_precision_score)]
)
@pytest.mark.parametrize("decimals", [1, 9])
def test_one_prediction_of_all_images_is_scored_as_scikit_learn_does(ours, theirs, decimals):
    predicted, masks, share = blocks(decimals=decimals)
    share[2], share[4] = 0, 1
    expected = [
        theirs(mask.ravel(), np.repeat(predicted[0], BLOCK)) if i not in (2, 4) else np.nan
        for i, mask in enumerate(masks)
    ]
    np.testing.assert_allclose(ours(predicted[:1], share), expected, atol=1e-12)
    predicted[0, 3] = np.inf
    assert np.isnan(ours(predicted[:1], share)).all()


def test_dice_of_one_prediction_with_masks_equals_f1_of_pixels():
    predicted, masks, _ = blocks(decimals=1)
    masks = masks[..., 0]
    masks[3] = False
    cuts = np.array([0.9, -9.0, 0.2, 0.2, 9.0])
    expected = [
        [f1_score(mask, predicted[0] > cut, zero_division=1) for mask in masks] for cut in cuts
    ]
    found = dice_at(predicted[:1], masks, cuts)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_array_equal(found, dice_at(predicted[:1], masks.astype(float), cuts))


@pytest.mark.parametrize("size", [1, 2, 65, 1000])
def test_quantiles_have_the_bits_of_numpy(size):
    values = np.random.default_rng(size).standard_normal((size, 3)).round(2)
    values[0] *= 1e9
    levels = np.linspace(0, 1, 64)
    np.testing.assert_array_equal(quantiles(values, levels), np.quantile(values, levels))
