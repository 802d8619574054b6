"""Figures of the model, against closed forms."""

import numpy as np
import pytest

from ldmprobe_core.tabletop.measures import evaluation


def test_frechet_distance_against_closed_forms():
    draws = np.random.default_rng(0).normal(size=(200_000, 3)) * (1, 2, 3)
    a, b = draws[:100_000], draws[100_000:]
    assert evaluation.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert evaluation.frechet_distance(a, a + np.array([3, 0, 4])) == pytest.approx(25)
    # Between centred normal distributions whose axes agree: squared differences of the deviations.
    assert evaluation.frechet_distance(a, b * (2, 1, 1)) == pytest.approx(1, rel=0.05)
    c, s = np.cos(0.7), np.sin(0.7)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    once, turned = (
        evaluation.frechet_distance(a @ t, b * (2, 1, 1) @ t) for t in (np.eye(3), turn)
    )
    assert once == pytest.approx(turned)


def test_correlation_inside_counts_pixels_of_the_object_only():
    truth = np.arange(64.0).reshape(1, 8, 8)
    inside = np.zeros((1, 8, 8), bool)
    inside[0, :5, :5] = True
    outside_wrong = np.where(inside, truth * 2 + 5, -truth)
    assert evaluation.correlation_inside(outside_wrong, truth, inside) == pytest.approx(1)
    assert evaluation.correlation_inside(-truth, truth, inside) == pytest.approx(-1)


def test_degrees_off_is_the_angle_and_nan_without_length():
    a = np.array([[[[1, 0, 0], [2, 2, 0], [0, 0, 0]]]])
    b = np.array([[[[3, 0, 0], [0, 1, 0], [1, 0, 0]]]])
    np.testing.assert_allclose(evaluation.degrees_off(a, b), [[[0, 45, np.nan]]], atol=1e-6)
