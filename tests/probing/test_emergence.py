"""Emergence on gains that are known."""

import numpy as np

from ldmprobe_core.probing.bootstrap import Bootstrap
from ldmprobe_core.probing.emergence import stays_from


def curve(values, samples=80, noise=0.02, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(values)[:, None] + rng.normal(0, noise, (len(values), samples))


BASELINE = np.full(80, 0.2)


RISING = [0.2, 0.3, 0.55, 0.6, 0.9, 1.0, 1.0]  # gains 0, .125, .44, .5, .875, 1, 1


def test_stays_from_ignores_a_gain_that_is_lost_again():
    gains = np.array([[0.0, 0.9, 0.1, 0.8, 1.0], [0.9, 0.9, 0.9, 0.8, 1.0]])
    np.testing.assert_array_equal(stays_from(gains, np.ones((2, 5)), 0.5), [4, 1])


def test_stays_from_counts_an_undefined_step_as_below():
    assert stays_from(np.array([[0.9, np.nan, 0.9, 1.0]]), np.ones((1, 4)), 0.5)[0] == 3
    scores = curve(RISING)
    scores[5] = np.nan
    found = Bootstrap(np.arange(80), 200, 0.95, 0).emergence(scores, BASELINE)
    assert found.onset.step == 7


def test_stays_from_a_curve_that_ends_below_its_baseline_is_the_last_step():
    """A gain divided by a negative one would look like a large share of it."""
    falling = np.array([[-0.1, -0.9, -1.0], [0.5, 0.2, -0.1], [0.0, 0.0, 0.0]])
    full = np.broadcast_to(falling[:, -1:], (3, 3))
    np.testing.assert_array_equal(stays_from(falling, full, 0.5), [3, 3, 3])
