"""Ceilings of token grids against loops over cuts and scipy."""

import warnings

import numpy as np
import pytest
from scipy import stats

from ldmprobe_core.analysis.controls.ceilings import all_foreground_score, block_ceilings
from ldmprobe_core.probing.label_set import LabelSet


def label_set_of(**maps):
    n = len(next(iter(maps.values())))
    means = {prop: values[: n // 2].mean(0, dtype=float) for prop, values in maps.items()}
    heldout = np.arange(n // 2, n)
    return LabelSet(maps, means, np.arange(n // 2), heldout[:1], heldout)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_ceiling_of_a_mask_is_the_best_dice_of_any_cut_of_its_shares():
    masks = np.random.default_rng(0).random((8, 8, 8)) < 0.4
    masks[:, :, 4:] |= masks[:, :, 4:][:, ::-1]
    labels, test = label_set_of(foreground=masks), np.array([5, 6, 7])
    found = block_ceilings(labels, "foreground", [(4, 2), (8, 8), (4, 2)], test)
    expected = []
    for mask in masks[test]:
        shares = mask.reshape(4, 2, 2, 4).mean((1, 3)).repeat(2, 0).repeat(4, 1)
        cuts = [-1.0, *np.unique(shares)]
        expected.append(max(dice(shares > cut, mask) for cut in cuts if (shares > cut).any()))
    assert found == {"4x2": pytest.approx(np.mean(expected)), "8x8": pytest.approx(1.0)}


def test_ceiling_of_a_map_is_the_score_of_its_blocks():
    depth = np.random.default_rng(1).random((6, 8, 8)).cumsum(1)
    labels, test = label_set_of(depth=depth), np.array([4, 5])
    found = block_ceilings(labels, "depth", [(4, 4)], test)["4x4"]
    means, ranks = [], []
    for image in depth[test]:
        for scores, values in ((means, image), (ranks, stats.rankdata(image).reshape(8, 8))):
            blocks = values.reshape(4, 2, 4, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
            scores.append(stats.spearmanr(blocks.ravel(), image.ravel()).statistic)
    assert found == pytest.approx(max(np.mean(means), np.mean(ranks)), abs=1e-6)
    assert found < 1


def test_dice_of_foreground_everywhere():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2], masks[1, 0, 0] = True, True
    expected = [dice(np.ones((4, 4), bool), mask) for mask in masks]
    assert all_foreground_score(masks) == pytest.approx(np.mean(expected))
    partly = masks.astype(float)
    partly[0, 2:] = np.nan
    assert all_foreground_score(partly) == pytest.approx((1 + expected[1]) / 2)


def test_maps_without_a_defined_score_have_no_ceiling():
    """A constant map has no rank correlation, and a mask without measured pixels has no Dice."""
    labels, test = label_set_of(depth=np.ones((6, 8, 8))), np.array([4, 5])
    assert block_ceilings(labels, "depth", [(4, 4)], test) == {"4x4": None}
    unknown = np.full((6, 8, 8), np.nan)
    labels = label_set_of(foreground=unknown)
    assert block_ceilings(labels, "foreground", [(4, 4)], test) == {"4x4": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all_foreground_score(unknown[test]) is None
