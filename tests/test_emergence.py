"""Emergence on curves whose steps are known, and the bootstrap against plain formulas."""

import numpy as np
import pytest

from ldmprobe_core.emergence import Bootstrap, stays_from


def curve(values, samples=80, noise=0.02, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(values)[:, None] + rng.normal(0, noise, (len(values), samples))


BASELINE = np.full(80, 0.2)
RISING = [0.2, 0.3, 0.55, 0.6, 0.9, 1.0, 1.0]  # gains 0, .125, .44, .5, .875, 1, 1


def test_steps_of_a_known_curve():
    found = Bootstrap(80, 500, 0.95, 0).emergence(
        curve([0.2, 0.3, 0.5, 0.7, 0.85, 0.99, 1]), BASELINE
    )
    assert (found.onset.step, found.onset.low, found.onset.high) == (4, 4, 4)
    assert (found.settled.step, found.settled.low, found.settled.high) == (6, 6, 6)


def test_a_step_on_the_edge_has_an_interval_around_it():
    found = Bootstrap(80, 500, 0.95, 0).emergence(curve(RISING, noise=0.2), BASELINE)
    assert found.onset.low <= 4 <= found.onset.high
    assert found.onset.low < found.onset.high


def test_a_gain_that_is_lost_again_does_not_count():
    assert stays_from(np.array([[0.0, 0.9, 0.1, 0.8, 1.0]]), np.zeros(1), 0.5)[0] == 4
    assert stays_from(np.array([[0.9, 0.9, 0.9, 0.8, 1.0]]), np.zeros(1), 0.5)[0] == 1


def test_an_undefined_step_counts_as_below():
    assert stays_from(np.array([[0.9, np.nan, 0.9, 1.0]]), np.zeros(1), 0.5)[0] == 3
    scores = curve(RISING)
    scores[5] = np.nan
    found = Bootstrap(80, 200, 0.95, 0).emergence(scores, BASELINE)
    assert found.onset.step == 7


def test_a_curve_that_does_not_clear_the_baseline_has_no_steps():
    for flat in (curve([0.2] * 5, noise=0.1), curve([0.1] * 5)):
        found = Bootstrap(80, 200, 0.95, 0).emergence(flat, BASELINE)
        assert found.onset.step is None
        assert found.settled.high is None


def test_intervals_are_the_means_of_resamples():
    values = np.random.default_rng(1).normal(3, 2, 60)
    found = Bootstrap(60, 4000, 0.95, 0).interval(values)
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(60)  # the normal approximation of the same interval
    assert found.low == pytest.approx(values.mean() - half, abs=0.08)
    assert found.high == pytest.approx(values.mean() + half, abs=0.08)


def test_undefined_samples_are_left_out_and_not_averaged_in():
    values = np.array([1.0, 2.0, 3.0, np.nan])
    bootstrap = Bootstrap(4, 500, 0.95, 0)
    found = bootstrap.interval(values)
    assert found.mean == pytest.approx(2.0)
    assert 1.0 <= found.low <= found.high <= 3.0
    nothing = bootstrap.interval(np.full(4, np.nan))
    assert nothing.mean is None
    assert nothing.low is None


def test_resample_means_equal_a_loop():
    bootstrap = Bootstrap(6, 100, 0.95, 3)
    values = np.random.default_rng(2).random((2, 6))
    values[1, 2] = np.nan
    means = bootstrap.means(values)
    for r in range(100):
        drawn = np.repeat(values, bootstrap.counts[r].astype(int), axis=1)
        np.testing.assert_allclose(means[r], np.nanmean(drawn, axis=1))


def test_the_interval_covers_the_true_step():
    """300 simulated studies of a curve that crosses between steps 3 and 4."""
    truth = np.array([0.2, 0.3, 0.52, 0.68, 0.85, 0.97, 1.0])
    covered = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        level = rng.normal(0, 0.15, 80)  # samples differ, steps of a sample go together
        scores = truth[:, None] + level + rng.normal(0, 0.1, (7, 80))
        found = Bootstrap(80, 200, 0.95, seed).emergence(scores, BASELINE)
        covered += found.onset.low <= 4 <= found.onset.high
    assert covered >= 0.93 * 300
