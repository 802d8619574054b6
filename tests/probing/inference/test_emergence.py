"""Crossing steps against a slow loop, closed forms, and simulated studies with known truth."""

import numpy as np
import pytest

from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.inference.emergence import (
    Crossing,
    absolute_margins,
    crossing,
    first_step_above,
    lead_over,
    relative_margins,
)

STEPS = 15
CURVES = {
    # Rises at a step, creeps past the bar, runs along the bar, rises at the end.
    "clear rise": np.r_[0.05, 0.07, 0.09, 0.1, 0.2, 0.45, 0.6, 0.62, np.full(7, 0.63)],
    "slow rise": np.linspace(0.04, 0.6, STEPS),
    "creeps past the bar": np.r_[0.05, 0.1, np.linspace(0.29, 0.31, 11), 0.45, 0.6],
    "runs along the bar": np.r_[0.05, 0.1, np.full(11, 0.302), 0.45, 0.6],
    "late rise": np.r_[np.full(13, 0.1), 0.2, 0.6],
}


def slow_first_step(row):
    for k in range(len(row)):
        if all(value >= 0 for value in row[k:]):
            return k + 1
    return len(row) + 1


def test_first_step_above_equals_a_loop():
    rows = np.random.default_rng(0).standard_normal((200, 6)).round(1)
    assert first_step_above(rows).tolist() == [slow_first_step(row) for row in rows]
    assert first_step_above(np.array([1.0, 1, np.nan])) == 4


def test_relative_margin_is_zero_at_the_bar():
    scores = np.array([[0.2], [0.5], [0.8]])  # baseline .2, gain .6: half of it is .5
    assert relative_margins(scores, np.array([0.2]), 0.5)[:, 0] == pytest.approx([-0.3, 0, 0.3])


def test_absolute_margin_asks_the_same_height_of_every_curve():
    rival = np.array([[0.4], [0.5], [0.9]])
    margins = absolute_margins(rival, np.array([0.8]), np.array([0.2]), 0.5)
    assert margins[:, 0] == pytest.approx([-0.1, 0, 0.4])


def test_without_spread_the_interval_is_the_step():
    values = np.repeat(CURVES["clear rise"][:, None], 8, axis=1)
    margins = relative_margins(values, np.zeros(8), 0.5)
    result = crossing(margins, Bootstrap(np.arange(8), 50, 0.95, 0))
    assert (result.step, result.low, result.high, result.determined) == (6, 6, 6, True)
    assert result.distribution == [0.0] * 5 + [1.0] * 10


def test_a_curve_that_ends_below_its_bar_never_crosses():
    result = crossing(np.full((4, 6), -0.1), Bootstrap(np.arange(6), 20, 0.95, 0))
    assert (result.step, result.low, result.high, result.determined) == (None, None, None, False)
    assert result.distribution == [0.0] * 4


def test_samples_that_some_step_leaves_undefined_are_left_out():
    values = np.ones((3, 8))
    values[:, 1], values[1, 1] = -9, np.nan
    result = crossing(values, Bootstrap(np.arange(8), 20, 0.95, 0))
    assert (result.step, result.low, result.high) == (1, 1, 1)


def test_without_usable_samples_or_enough_prompts_the_step_is_undefined():
    assert crossing(np.full((3, 8), np.nan), Bootstrap(np.arange(8), 20, 0.95, 0)) == Crossing()
    assert crossing(np.ones((3, 8)), Bootstrap(np.arange(8) % 4, 20, 0.95, 0)) == Crossing()


def test_resplits_widen_the_interval_of_a_curve_without_spread():
    """Two re-splits cross one step earlier and one later; their mean is the curve."""
    curve = np.array([-0.3, -0.1, 0.1, 0.3, 0.5])
    values = np.repeat(curve[:, None], 8, axis=1)
    bootstrap = Bootstrap(np.arange(8), 100, 0.95, 0)
    deviations = np.repeat(np.array([-0.2, 0.2])[:, None, None], 5, axis=1).repeat(8, axis=2)
    result = crossing(values, bootstrap, deviations)
    assert (result.step, result.low, result.high) == (3, 2, 4)
    assert result.distribution == [0, 0.5, 0.5, 1, 1]
    without = crossing(values, bootstrap)
    assert (without.low, without.high) == (3, 3)


def test_resplits_shift_the_resamples_in_turn():
    """Means of every resample, computed one by one, and shifted by a mean over all samples."""
    rng = np.random.default_rng(5)
    values, deviations = rng.normal(0.2, 1, (4, 9)), rng.normal(0, 1, (3, 4, 9))
    bootstrap = Bootstrap(np.arange(9), 50, 0.95, 1)
    result = crossing(values, bootstrap, deviations)
    [counts] = bootstrap.counts
    crossed = [
        slow_first_step(
            [
                np.average(step, weights=count) + sum(shift) / 9
                for step, shift in zip(values, deviations[number % 3], strict=True)
            ]
        )
        for number, count in enumerate(counts)
    ]
    expected = [np.mean([step <= k for step in crossed]) for k in range(1, 5)]
    assert result.distribution == pytest.approx(expected)


@pytest.mark.parametrize(("clusters", "covers_zero"), [(5, True), (48, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_bands_are_as_wide_as_a_t_interval(clusters, covers_zero, sign):
    """2.3 standard errors from the bar: inside t(4) = 2.78, outside t(47) = 2.01."""
    noise = np.random.default_rng(3).standard_normal(clusters)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    margins = np.stack([noise + sign * 2.3 / np.sqrt(clusters), np.ones(clusters)])
    result = crossing(margins, Bootstrap(np.arange(clusters), 4000, 0.95, 0))
    step = 1 if sign > 0 else 2
    assert result.step == step
    assert (result.low, result.high) == ((1, 2) if covers_zero else (step, step))


def test_categories_too_few_for_an_interval_are_not_resampled():
    """Scores are defined in two of eight categories, which differ; only prompts are resampled."""
    margins = np.repeat(np.array([[1.2], [1.5]]), 12, axis=1)
    margins[0, :6] += np.repeat([-0.6, 0.6], 3)
    margins[:, 6:] = np.nan
    categories = np.r_[np.repeat(["a", "b"], 3), ["c", "d", "e", "f", "g", "h"]]
    by_prompt = Bootstrap(np.arange(12), 50, 0.95, 0)
    by_category = Bootstrap(np.arange(12), 50, 0.95, 0, categories)
    found = crossing(margins, by_category)
    assert (found.low, found.high) == (1, 1)
    assert found == crossing(margins, by_prompt)


def test_lead_joins_the_opposite_ends_of_both_intervals():
    def step(at, low, high):
        return Crossing(step=at, low=low, high=high, determined=True, distribution=[0.0] * 15)

    early, late = step(3, 2, 4), step(8, 7, 8)
    found = lead_over(early, late)
    assert (found.steps, found.low, found.high, found.determined) == (5, 3, 6, True)
    back = lead_over(late, early)
    assert (back.steps, back.low, back.high) == (-5, -6, -3)
    unbounded = lead_over(early, step(8, 7, None))
    assert (unbounded.steps, unbounded.low, unbounded.determined) == (5, None, False)
    assert not lead_over(step(3, 1, 5), step(8, 6, 9)).determined
    assert lead_over(early, Crossing()).steps is None


def simulated(curve, rng, samples, clusters):
    """Scores (step, sample) about a curve: noise that lasts over steps, and of each cluster."""
    groups = np.repeat(np.arange(clusters), samples // clusters)
    of_cluster = 0.06 * rng.standard_normal((STEPS, clusters))
    noise = rng.standard_normal((STEPS, samples))
    for t in range(1, STEPS):
        noise[t] = 0.5 * noise[t - 1] + np.sqrt(0.75) * noise[t]
    level = 0.1 * rng.standard_normal(samples)
    return curve[:, None] + of_cluster[:, groups] + 0.12 * noise + level, level, groups


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [6, 12, 48])
@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("name", CURVES)
def test_interval_covers_the_true_step(name, share, clusters):
    """In at least 93% of 200 studies; a step that is called determined is wrong in few of all."""
    curve = CURVES[name]
    true = slow_first_step(curve - share * curve[-1])
    covered = wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scores, baseline, groups = simulated(curve, rng, 2 * clusters, clusters)
        bootstrap = Bootstrap(groups, 200, 0.95, seed)
        result = crossing(relative_margins(scores, baseline, share), bootstrap)
        low, high = result.low or STEPS + 1, result.high or STEPS + 1
        covered += low <= true <= high
        wrong += result.determined and not low <= true <= high
    assert covered >= 0.93 * 200
    assert wrong <= 0.05 * 200


@pytest.mark.slow
def test_resplits_keep_the_coverage_where_training_varies():
    """The variation of training shifts a study's whole curve; its re-splits show how much."""
    curve, spread = CURVES["slow rise"], 0.04
    true = slow_first_step(curve - 0.25)
    covered = {"with": 0, "without": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shifts = spread * rng.standard_normal(21)
        values = curve[:, None] - 0.25 + shifts[0] + 0.1 * rng.standard_normal((STEPS, 96))
        deviations = np.broadcast_to((shifts[1:] - shifts[1:].mean())[:, None, None], (20, 15, 96))
        bootstrap = Bootstrap(np.arange(96), 200, 0.95, seed)
        for name, known in (("with", deviations), ("without", None)):
            result = crossing(values, bootstrap, known)
            low, high = result.low or STEPS + 1, result.high or STEPS + 1
            covered[name] += low <= true <= high
    assert covered["with"] >= 0.93 * 200
    assert covered["without"] < 0.8 * 200


@pytest.mark.parametrize("known", [[1, 3, 8, 15], [1, 2, 4, 7, 11, 15], [5, 15], [15]])
@pytest.mark.parametrize("true_step", [1, 2, 3, 4, 8, 9, 15])
def test_interval_on_some_steps_holds_the_step_of_all(known, true_step):
    bootstrap = Bootstrap(np.arange(12), 50, 0.95, 0)
    margins = np.where(np.arange(1, 16) >= true_step, 1.0, -1.0)[:, None].repeat(12, 1)
    assert crossing(margins, bootstrap).step == true_step
    found = crossing(margins[np.array(known) - 1], bootstrap).at_steps(np.array(known), 15)
    first = min(step for step in known if step >= true_step)
    before = max((step for step in known if step < first), default=0)
    assert (found.step, found.low, found.high) == (first, before + 1, first)
    assert found.low <= true_step <= found.high
    assert found.determined == (first - before - 1 <= 5)
    assert found.distribution == [0.0] * (first - 1) + [1.0] * (16 - first)


def test_lead_over_a_labeler_seen_at_some_steps_holds_the_lead_at_all():
    bootstrap, known = Bootstrap(np.arange(12), 50, 0.95, 0), np.array([1, 3, 8, 15])

    def margins(first):
        return np.where(np.arange(1, 16) >= first, 1.0, -1.0)[:, None].repeat(12, 1)

    probe = crossing(margins(3), bootstrap)
    labeler = crossing(margins(4)[known - 1], bootstrap).at_steps(known, 15)
    lead = lead_over(probe, labeler)
    assert (lead.low, lead.high) == (1, 5)  # 4 - 3 = 1 is the lead at all steps
