"""Pairs of scenes and choice of a cell in benchmarks/readouts.py."""

import numpy as np

from benchmarks.readouts import CATEGORIES, chosen_score, scene_pairs
from ldmprobe_core.tabletop.render import correspondences


def test_scene_pairs_show_one_object_twice_with_common_points():
    pairs = scene_pairs(3)
    assert all(first.category in CATEGORIES for first, _ in pairs)
    for first, second in pairs:
        assert (first.category, first.color) == (second.category, second.color)
        assert first.yaw != second.yaw
        assert np.isfinite(correspondences(first, second, size=32)).sum() > 40


def test_chosen_score_chooses_on_the_first_half_and_reports_the_second():
    """The second half of `a` is better at step 1, which the first half does not choose."""
    scores = {
        "a": np.array([[0.1, 0.6], [0.2, 0.7], [0.9, 0.3], [0.8, 0.4]]),
        "b": np.array([[0.5, 0.5], [0.5, np.nan], [1.0, 1.0], [1.0, 1.0]]),
    }
    name, values = chosen_score(scores)
    assert name == "a, step 2"
    np.testing.assert_array_equal(values, [0.3, 0.4])
