"""Scores of edited images."""

import numpy as np
import pytest

from ldmprobe_core.interventions.measures.scores import (
    background_change,
    mask_measures,
    measures_of,
    score_edited_maps,
)
from ldmprobe_core.probing.metrics import dice
from ldmprobe_core.study.properties import DEPTH, FOREGROUND


def test_background_change_counts_pixels_outside_both_masks():
    before = np.zeros((1, 4, 4, 3), np.uint8)
    after = before.copy()
    after[0, 0, 0] = 255  # in the object
    after[0, 3, 3] = (0, 0, 153)  # outside: 0.2 on average
    object_mask, target_mask = np.zeros((2, 1, 4, 4), bool)
    object_mask[0, 0, 0] = target_mask[0, 0, 1] = True
    change = background_change(before, after, object_mask, target_mask)
    assert change[0] == pytest.approx(0.2 / 14)
    assert np.isnan(background_change(before, after, ~object_mask, object_mask)[0])


def rectangle(top, left, height, width):
    mask = np.zeros((16, 16), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_mask_measures_of_rectangles_have_closed_forms():
    """The object is to move 6 pixels to the right; four edits with known results."""
    label, target = rectangle(4, 2, 4, 4), rectangle(4, 8, 4, 4)
    edits = np.stack([
        label,  # nothing moved
        rectangle(4, 6, 4, 4),  # 4 of 6 pixels; nothing of the vacated area remains
        rectangle(7, 4, 4, 4),  # 2 right, and 3 down, which does not count
        label | rectangle(4, 8, 4, 8),  # grown threefold; the old place stays foreground
    ])  # fmt: skip
    labels, targets = np.stack([label] * 4), np.stack([target] * 4)
    moved, way, ghost, area = mask_measures(edits, labels, targets)
    grown = (3.5 * 16 + 11.5 * 32) / 48 - 3.5
    np.testing.assert_allclose(moved, [0, 4, 2, grown], atol=1e-12)
    np.testing.assert_allclose(way, np.array([0, 4, 2, grown]) / 6, atol=1e-12)
    np.testing.assert_allclose(ghost, [1, 0, 2 / 16, 1], atol=1e-12)
    np.testing.assert_allclose(area, [1, 1, 1, 3])


def test_mask_measures_are_nan_where_undefined():
    label, none = rectangle(4, 2, 4, 4)[None], np.zeros((1, 16, 16), bool)
    moved, way, ghost, area = mask_measures(none, label, label)
    assert np.isnan([moved[0], way[0], ghost[0]]).all()
    assert area[0] == 0
    assert np.isnan(mask_measures(label, none, label)).all()


def test_score_edited_maps_gives_no_credit_for_a_vanished_object():
    """The target of the second sample lies outside the image, and its edit removes the object."""
    label, none = rectangle(4, 2, 4, 4), np.zeros((16, 16), bool)
    labels, targets = np.stack([label, label]), np.stack([rectangle(4, 8, 4, 4), none])
    scores = score_edited_maps(
        FOREGROUND, np.stack([label, none]), labels, targets, np.ones((16, 16))
    )
    agreement = dict(zip(measures_of(FOREGROUND), scores, strict=True))
    np.testing.assert_array_equal(agreement["dice"], [0, np.nan])
    np.testing.assert_array_equal(agreement["own_label"], [1, 0])


def test_score_edited_maps_gives_the_metrics_then_the_mask_measures():
    rng = np.random.default_rng(0)
    maps, labels, targets = rng.random((3, 2, 16, 16)) > 0.5
    mean = np.full((16, 16), 0.5)
    scores = score_edited_maps(FOREGROUND, maps, labels, targets, mean)
    assert measures_of(FOREGROUND) == (
        "dice", "own_label", "moved", "way", "ghost", "area",
    )  # fmt: skip
    np.testing.assert_array_equal(scores[0], dice(maps, targets))
    np.testing.assert_array_equal(scores[1], dice(maps, labels))
    np.testing.assert_array_equal(scores[2:], mask_measures(maps, labels, targets))


def test_score_edited_maps_gives_the_agreement_with_the_own_label_in_the_headline_metric():
    rng = np.random.default_rng(2)
    labels, targets = rng.normal(size=(2, 1, 8, 8))
    mean, row = rng.random((8, 8)), measures_of(DEPTH).index("own_label")
    against_own, swapped = (
        score_edited_maps(DEPTH, labels * 2 + 1, labels, targets, mean)[row, 0],
        score_edited_maps(DEPTH, targets, labels, targets, mean)[row, 0],
    )
    assert against_own == pytest.approx(1.0)
    expected = score_edited_maps(DEPTH, labels, targets, targets, mean)[0, 0]
    assert swapped == pytest.approx(expected)


def test_score_edited_maps_regresses_the_mean_map_out_of_depth():
    """Correlation of the residuals of ranks, by least squares; a map of position has no score."""
    rng = np.random.default_rng(1)
    mean = rng.random((8, 8))
    maps, targets = mean + rng.normal(size=(2, 2, 8, 8)) * 0.3
    scores = score_edited_maps(DEPTH, maps, maps, targets, mean)
    ranks = [np.argsort(np.argsort(m.ravel())) for m in (maps[0], targets[0], mean)]
    base = np.stack([np.ones(64), ranks[2]], axis=1)
    left = [r - base @ np.linalg.lstsq(base, r, rcond=None)[0] for r in ranks[:2]]
    assert measures_of(DEPTH)[0] == "spearman_partial"
    assert scores[0, 0] == pytest.approx(np.corrcoef(*left)[0, 1])
    assert np.isnan(score_edited_maps(DEPTH, mean[None], maps[:1], targets[:1], mean)[0, 0])
