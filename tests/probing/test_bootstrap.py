"""Bootstrap intervals and emergence steps against plain formulas."""

import numpy as np
import pytest

from ldmprobe_core.probing.bootstrap import Bootstrap


def curve(values, samples=80, noise=0.02, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(values)[:, None] + rng.normal(0, noise, (len(values), samples))


BASELINE = np.full(80, 0.2)


RISING = [0.2, 0.3, 0.55, 0.6, 0.9, 1.0, 1.0]  # gains 0, .125, .44, .5, .875, 1, 1


def simulated(truth, seed, samples=80):
    """Samples differ in level, their steps go together, each step has noise of its own."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 0.15, samples)
    return np.asarray(truth)[:, None] + level + rng.normal(0, 0.1, (len(truth), samples))


def test_emergence_steps_of_a_known_curve():
    found = Bootstrap(np.arange(80), 500, 0.95, 0).emergence(
        curve([0.2, 0.3, 0.5, 0.7, 0.85, 0.99, 1]), BASELINE
    )
    assert (found.onset.step, found.onset.low, found.onset.high) == (4, 4, 4)
    assert (found.settled.step, found.settled.low, found.settled.high) == (6, 6, 6)


def test_emergence_step_on_the_edge_has_an_interval_around_it():
    found = Bootstrap(np.arange(80), 500, 0.95, 0).emergence(curve(RISING, noise=0.2), BASELINE)
    assert found.onset.low <= 4 <= found.onset.high
    assert found.onset.low < found.onset.high


def test_emergence_gain_uses_samples_that_all_three_scores_define():
    """Two kinds of samples, easy and hard: leaving the hard ones out at a step is no gain."""
    easy = np.arange(80) < 40
    baseline = np.where(easy, 0.5, 0.0)
    level = np.where(easy, 1.0, 0.5)
    share = np.array([0.2, 0.4, 0.6, 1.0])  # of the gain: half of it from step 3
    scores = baseline + share[:, None] * (level - baseline)
    scores[1, ~easy] = np.nan  # the mean of what is left, 0.7, would be beyond half of 0.25..0.75
    found = Bootstrap(np.arange(80), 200, 0.95, 0).emergence(scores, baseline)
    assert found.onset.step == 3
    assert found.onset.low == found.onset.high == 3


def test_bootstrap_of_one_prompt_has_a_mean_and_no_interval():
    found = Bootstrap(np.array(["one"] * 5), 100, 0.95, 0).interval(np.arange(5.0))
    assert (found.mean, found.low, found.high) == (2.0, None, None)


def test_bootstrap_draws_samples_of_a_prompt_together():
    """16 prompts of 5 equal images: the interval is that of 16 samples, not of 80."""
    rng = np.random.default_rng(4)
    level = rng.normal(0, 1, 16)
    prompts = np.repeat([f"prompt {i}" for i in range(16)], 5)
    values = np.repeat(level, 5)
    together = Bootstrap(prompts, 4000, 0.95, 0)
    found = together.interval(values)
    half = 1.96 * level.std() / 4
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)
    assert together.groups == 16
    for counts in together.counts[:20]:
        assert (counts.reshape(16, 5) == counts[::5, None]).all()
        assert counts.sum() == 80


def test_emergence_has_no_steps_for_a_curve_below_the_baseline():
    for flat in (curve([0.2] * 5, noise=0.1), curve([0.1] * 5)):
        found = Bootstrap(np.arange(80), 200, 0.95, 0).emergence(flat, BASELINE)
        assert found.onset.step is None
        assert found.settled.high is None


def test_bootstrap_interval_equals_the_normal_approximation():
    values = np.random.default_rng(1).normal(3, 2, 60)
    found = Bootstrap(np.arange(60), 4000, 0.95, 0).interval(values)
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(60)  # the normal approximation of the same interval
    assert found.low == pytest.approx(values.mean() - half, abs=0.08)
    assert found.high == pytest.approx(values.mean() + half, abs=0.08)


def test_bootstrap_leaves_out_undefined_samples():
    values = np.array([1.0, 2.0, 3.0, np.nan])
    bootstrap = Bootstrap(np.arange(4), 500, 0.95, 0)
    found = bootstrap.interval(values)
    assert found.mean == pytest.approx(2.0)
    assert 1.0 <= found.low <= found.high <= 3.0
    nothing = bootstrap.interval(np.full(4, np.nan))
    assert nothing.mean is None
    assert nothing.low is None


def test_resample_means_equal_a_loop():
    bootstrap = Bootstrap(np.arange(6), 100, 0.95, 3)
    values = np.random.default_rng(2).random((2, 6))
    values[1, 2] = np.nan
    means = bootstrap.means(values)
    for r in range(100):
        drawn = np.repeat(values, bootstrap.counts[r].astype(int), axis=1)
        np.testing.assert_allclose(means[r], np.nanmean(drawn, axis=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("truth", "step", "widest"),
    [
        ([0.2, 0.3, 0.52, 0.68, 0.85, 0.97, 1.0], 4, 1.0),  # crosses well between steps 3 and 4
        ([0.2, 0.3, 0.56, 0.63, 0.85, 0.97, 1.0], 4, 1.3),  # 0.55 and 0.65 of the gain: near
        ([0.2, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0], 2, 0.2),  # early and clear
        ([0.2, 0.2, 0.2, 0.2, 0.2, 0.3, 1.0], 7, 0.2),  # at the last step only
    ],
)
def test_emergence_interval_covers_the_true_step(truth, step, widest):
    """1,000 simulated studies: the interval covers in 93% or more, and is no wider than need be.

    Mean widths measured: 0.1, 0.6, 0.0 and 0.0 steps.
    """
    covered, width = 0, 0
    for seed in range(1000):
        found = Bootstrap(np.arange(80), 200, 0.95, seed).emergence(
            simulated(truth, seed), BASELINE
        )
        covered += found.onset.low <= step <= found.onset.high
        width += found.onset.high - found.onset.low
    print(f"covered {covered / 1000:.3f}, mean width {width / 1000:.2f}")
    assert covered >= 930
    assert width / 1000 <= widest


def test_lead_is_paired_and_has_an_interval():
    first, other = simulated([0.2, 0.9, 1, 1, 1, 1, 1], 1), simulated([0.2] * 4 + [0.9, 1, 1], 1)
    bootstrap = Bootstrap(np.arange(80), 500, 0.95, 0)
    found = bootstrap.lead(first, other, BASELINE)
    assert (found.onset.steps, found.onset.low, found.onset.high) == (3, 3, 3)
    back = bootstrap.lead(other, first, BASELINE)
    assert back.onset.steps == -3
    same = bootstrap.lead(first, first, BASELINE)
    assert (same.settled.steps, same.settled.low, same.settled.high) == (0, 0, 0)
    never = bootstrap.lead(first, simulated([0.1] * 7, 2), BASELINE)
    assert never.onset.steps is None
    assert never.settled.high is None
