"""Choice of the layer of a curve, and means over clusters."""

import numpy as np

from ldmprobe_core.probing.inference.selection import choose_layer, cluster_means


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
