"""Choice of the layer of a curve, and means over clusters."""

import numpy as np
import pytest

from ldmprobe_core.probing.inference.selection import (
    choose_layer,
    cluster_means,
    enough_defined,
    ranked_means,
)


@pytest.mark.parametrize(
    ("counts", "at_least", "enough"),
    [
        ([36, 18, 17, 0], 1, [True, True, False, False]),
        ([8, 5, 4, 1], 5, [True, True, False, False]),
        ([3, 3, 2], 5, [True, True, False]),
        ([1, 0], 1, [True, False]),
        ([0, 0], 1, [False, False]),
    ],
)
def test_enough_is_half_of_the_images_of_the_fullest_cell(counts, at_least, enough):
    assert enough_defined(np.array(counts), at_least).tolist() == enough


def test_cell_that_is_defined_in_an_easy_image_alone_has_no_rank():
    scores = np.array([[0.6, 0.5, 0.4, 0.9], [np.nan, np.nan, np.nan, 0.9], [np.nan] * 4])
    assert ranked_means(scores).tolist() == pytest.approx([0.6, -np.inf, -np.inf])
    assert ranked_means(scores[1:]).tolist() == pytest.approx([0.9, -np.inf])


def test_cluster_means_leave_undefined_samples_out():
    values = np.array([[1.0, 3, np.nan, 10], [np.nan, np.nan, 4, 6]])
    means = cluster_means(values, np.array(["b", "b", "a", "a"]))
    np.testing.assert_array_equal(means, [[10, 2], [5, np.nan]])


def test_layers_within_a_standard_error_are_ties():
    rng = np.random.default_rng(0)
    clusters = rng.standard_normal(30)
    scores = np.stack([clusters, clusters + 0.05, clusters - 2])[None].repeat(4, 0)
    error = clusters.std(ddof=1) / np.sqrt(30)
    assert error > 0.05
    choice = choose_layer(scores, np.arange(30))
    assert (choice.layer, choice.tied) == (1, (1, 0))


def test_standard_error_is_of_clusters_not_of_samples():
    """Ten copies of each cluster make the mean no more certain."""
    clusters = np.random.default_rng(1).standard_normal(12)
    error = clusters.std(ddof=1) / np.sqrt(12)
    scores = np.stack([clusters, clusters - 0.6 * error])[None]
    once = choose_layer(scores, np.arange(12))
    copies = choose_layer(scores.repeat(10, 2), np.arange(12).repeat(10))
    assert once.tied == copies.tied == (0, 1)


def test_undefined_scores_do_not_choose():
    scores = np.full((2, 3, 4), np.nan)
    scores[:, 1] = 0.1
    scores[0, 2] = 0.9
    scores[1, 2] = 0.3
    assert choose_layer(scores, np.arange(4)).layer == 2


def test_layer_without_scores_at_a_hard_step_is_not_the_best():
    rng = np.random.default_rng(4)
    scores = np.stack([np.full((5, 12), 0.75), np.full((5, 12), 0.78)], 1)
    scores += 0.01 * rng.standard_normal((5, 1, 12))
    scores[0, 0], scores[0, 1] = np.nan, 0.3  # layer 0 has no activation at step 1
    assert choose_layer(scores, np.arange(12)).tied == (1,)
    # Without complete samples in any layer, the defined steps choose.
    scores[1, 1] = np.nan
    assert choose_layer(scores, np.arange(12)).layer == 0


def test_layer_that_is_complete_in_an_easy_image_alone_is_not_the_best():
    rng = np.random.default_rng(2)
    scores = 0.7 + 0.05 * rng.standard_normal((5, 1, 36)).repeat(2, 1)
    scores[:, :, 0] = 0.95
    scores[:, 0] += 0.01
    scores[0, 0, 1:] = np.nan
    assert choose_layer(scores, np.arange(36)).tied == (1,)


def test_layers_are_compared_over_the_same_samples():
    """Layer 0 is better in every image, and layer 1 is not defined in the hardest of them."""
    scores = np.linspace(0.1, 0.9, 10).repeat(2).reshape(1, 10, 2).swapaxes(1, 2).repeat(3, 0)
    scores[:, 0] += 0.01
    scores[1, 1, :4] = np.nan
    assert np.nanmean(scores[:, 1]) > scores[:, 0].mean()
    assert choose_layer(scores, np.arange(10)).layer == 0
    # With few images in common, each layer has the mean of its own.
    scores[1, 0, 5:] = np.nan
    assert choose_layer(scores, np.arange(10)).layer == 1
