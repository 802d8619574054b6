"""Comparison of stored forms of activations by hand (benchmarks/stored_forms.py)."""

import numpy as np

from benchmarks.stored_forms import chosen_kinds, compared
from ldmprobe_core.probing.inference.bootstrap import Bootstrap

IS_TEST = np.array([False, True, True, True, True, True, False])
LAYERS = ["a", "b"]


def scores(heldout, test):
    """Scores (kind, step, layer, sample) with one value for validation and a row for tests."""
    values = np.empty((*np.shape(heldout), 7))
    values[..., ~IS_TEST] = np.asarray(heldout)[..., None]
    values[..., IS_TEST] = np.asarray(test)[..., None] + np.arange(5) / 100
    return values


def test_chosen_kinds_follow_validation_and_skip_kinds_without_scores():
    heldout = [[[0.1, 0.9]], [[0.3, 0.2]], [[np.nan, np.nan]]]
    test = [[[0.5, 0.6]], [[0.7, 0.8]], [[0.9, 0.9]]]
    chosen = chosen_kinds(scores(heldout, test), IS_TEST, LAYERS, "dice")
    np.testing.assert_allclose(chosen.values[0, :, IS_TEST].T[:, 0], [0.7, 0.6])
    assert chosen.chosen_cell() == (0, 1)


def test_compared_pairs_images_in_the_cells_that_validation_chooses_with_the_default():
    test = np.array([[[0.2, 0.1], [0.6, 0.7]]])
    default = chosen_kinds(scores([[[0.1, 0.2], [0.5, 0.4]]], test), IS_TEST, LAYERS, "dice")
    change = np.array([[0.03, -0.02], [-0.05, 0.04]])
    other = chosen_kinds(scores([[[0.1, 0.2], [0.1, 0.4]]], test + change), IS_TEST, LAYERS, "dice")
    bootstrap = Bootstrap(np.array(list("vwxyz")), 50, 0.95, seed=0)
    found = compared(default, other, bootstrap)
    # Every image changes by the same amount, so each interval has no width.
    assert found["best cell"] == {
        "step": 2, "layer": "a", "default": found["best cell"]["default"],
        "difference": [-0.05] * 3,
    }  # fmt: skip
    assert found["best cell"]["default"][0] == 0.62
    assert (found["first step"]["layer"], found["first step"]["difference"]) == ("b", [-0.02] * 3)
    assert (found["last step"]["layer"], found["last step"]["difference"]) == ("a", [-0.05] * 3)
    assert found["all cells"] == [0.0] * 3
    # With the form itself, validation chooses layer b at step 2: 0.74, where the default has 0.6.
    assert (found["own best cell"]["layer"], found["own best cell"]["difference"][0]) == ("b", 0.14)
    assert (found["largest loss"]["step"], found["largest loss"]["layer"]) == (2, "a")
    assert (found["largest gain"]["step"], found["largest gain"]["difference"][0]) == (2, 0.04)
