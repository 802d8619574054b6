"""Correspondence by nearest neighbours, and the fraction of correct points."""

import numpy as np
import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.probing.readouts.correspondence import nearest_tokens, pck


def test_nearest_tokens_finds_a_moved_token_of_another_length():
    """The target is the source one column to the right (the last becomes the first), scaled."""
    source = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float16)
    target = np.roll(source, 1, axis=1) * np.float16(3)
    points = np.array([[0.0, 0.0], [0.6, 0.3], [1.0, 1.0]])
    expected = [[0.25, 0.375], [0.75, 0.625], [0.75, 0.125]]
    np.testing.assert_allclose(nearest_tokens(source, target, points), expected)


def test_nearest_tokens_is_by_angle_not_by_distance():
    source = np.array([[[1.0, 0.0]]])
    target = np.array([[[1.0, 0.8], [9.0, 0.0]]])
    np.testing.assert_allclose(
        nearest_tokens(source, target, np.array([[0.5, 0.5]])), [[0.5, 0.75]]
    )


def test_nearest_tokens_refuses_other_channels_and_points_outside():
    tokens, point = np.ones((2, 2, 3)), np.array([[0.5, 0.5]])
    with pytest.raises(UserError, match=r"target: its number of channels .* \(2, not 3\)"):
        nearest_tokens(tokens, tokens[..., :2], point)
    with pytest.raises(UserError, match=r"points: some are outside the image \(0\.5 to 1\.5\)"):
        nearest_tokens(tokens, tokens, np.array([[0.5, 1.5]]))


def test_pck_is_the_fraction_of_points_within_the_tolerance():
    truth = np.zeros((4, 2))
    predicted = np.array([[0.06, 0.08], [0.0, 0.11], [-0.05, 0.0], [0.3, 0.4]])
    assert pck(predicted, truth, 0.1) == 0.5
    assert pck(predicted, truth, 0.5) == 1
    assert np.isnan(pck(truth[:0], truth[:0]))


@pytest.mark.parametrize("which", ["source", "target"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_nearest_tokens_refuses_activations_that_are_not_finite(which, value):
    tokens = {
        name: np.random.default_rng(0).normal(size=(4, 4, 3)) for name in ["source", "target"]
    }
    tokens[which][1, 2, 0] = value
    with pytest.raises(UserError, match=rf"{which}: 1 of its tokens .* not finite"):
        nearest_tokens(tokens["source"], tokens["target"], np.array([[0.1, 0.1]]))
