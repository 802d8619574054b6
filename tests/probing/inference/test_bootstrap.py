"""Bootstrap intervals against plain formulas."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ldmprobe_core.probing.inference.bootstrap import (
    Bootstrap,
    expanded_tails,
    fewest_clusters,
    resampled_means,
    resamples_beyond,
)
from ldmprobe_core.study.probe_sections import BootstrapSettings
from ldmprobe_core.study.samples import Sample


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
    half = stats.t.ppf(0.975, 15) * stats.sem(level)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)
    assert together.groups == 16
    for counts in together.counts[0][:20]:
        assert (counts.reshape(16, 5) == counts[::5, None]).all()
        assert counts.sum() == 80


def test_bootstrap_interval_equals_the_normal_approximation():
    values = np.random.default_rng(1).normal(3, 2, 60)
    found = Bootstrap(np.arange(60), 4000, 0.95, 0).interval(values)
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(60)  # the normal approximation of the same interval
    assert found.low == pytest.approx(values.mean() - half, abs=0.08)
    assert found.high == pytest.approx(values.mean() + half, abs=0.08)


def test_bootstrap_leaves_out_undefined_samples():
    values = np.array([1.0, 2.0, 3.0, np.nan, 2.0, np.inf, 2.0])
    bootstrap = Bootstrap(np.arange(7), 500, 0.95, 0)
    found = bootstrap.interval(values)
    assert found.mean == pytest.approx(2.0)
    assert 1.0 <= found.low <= found.high <= 3.0
    few = bootstrap.interval(np.where(np.arange(7) == 6, np.nan, values))
    assert (few.mean, few.low, few.high) == (2.0, None, None)  # four prompts have a score
    nothing = bootstrap.interval(np.full(7, np.nan))
    assert nothing.mean is None
    assert nothing.low is None


def test_resample_means_equal_a_loop():
    bootstrap = Bootstrap(np.arange(6), 100, 0.95, 3)
    values = np.random.default_rng(2).random((2, 6))
    values[1, 2] = np.nan
    (counts,) = bootstrap.counts
    means = resampled_means(values, counts)
    for r in range(100):
        drawn = np.repeat(values, counts[r].astype(int), axis=1)
        np.testing.assert_allclose(means[r], np.nanmean(drawn, axis=1))


@pytest.mark.parametrize("prompts", [1, 2, 4])
def test_bootstrap_of_fewer_than_five_prompts_has_no_interval(prompts):
    groups = np.arange(12) % prompts
    found = Bootstrap(groups, 100, 0.95, 0).interval(np.arange(12.0))
    assert (found.mean, found.low, found.high) == (5.5, None, None)
    assert Bootstrap(groups, 100, 0.95, 0).wider(np.arange(12.0)) is None


@pytest.mark.parametrize(("level", "fewest"), [(0.8, 5), (0.95, 5), (0.96, 6), (0.99, 8)])
def test_fewest_clusters_may_miss_the_centre_a_quarter_more_often_than_the_level_says(
    level, fewest
):
    """All of n fair signs are alike, so that the centre is beyond all values, in 2 of 2^n cases."""
    assert fewest_clusters(level) == fewest
    allowed = 1.25 * (1 - level) + 1e-9
    assert 2 / 2**fewest <= allowed
    assert fewest == 5 or 2 / 2 ** (fewest - 1) > allowed
    for prompts in (fewest - 1, fewest):
        found = Bootstrap(np.arange(prompts), 1000, level, 0).interval(np.arange(prompts))
        assert (found.low is None) == (prompts < fewest)


def test_fewest_clusters_of_a_very_high_level_need_no_more_resamples_than_can_be_drawn():
    def resamples(n):
        deviate = (n / (n - 1)) ** 0.5 * stats.t.ppf(0.0005, n - 1)
        return 1 / stats.norm.cdf(deviate)

    fewest = fewest_clusters(0.999)
    assert resamples(fewest) <= 100_050 < resamples(fewest - 1)
    assert fewest_clusters(0.99998) > fewest


def test_ends_of_an_interval_of_few_prompts_do_not_depend_on_too_few_resamples():
    """All 5^5 resamples of five prompts, listed: their share beyond the ends, over 40 seeds."""
    values = np.random.default_rng(8).standard_normal(5)
    means = values[np.stack(np.meshgrid(*[np.arange(5)] * 5), -1).reshape(-1, 5)].mean(1)
    # The expanded tail of five prompts; one in some 1000 resamples lies beyond each end.
    tail = stats.norm.cdf((5 / 4) ** 0.5 * stats.t.ppf(0.025, 4))
    shares = []
    for seed in range(40):
        bootstrap = Bootstrap(np.arange(5), 100, 0.95, seed)
        assert len(bootstrap.counts[0]) == 100
        found = bootstrap.interval(values)
        shares += [(means < found.low).mean(), (means > found.high).mean()]
    assert np.mean(shares) < 2.5 * tail
    # The default number of resamples suffices for every number of prompts that has an interval.
    assert [resamples_beyond(0.95, n) for n in (5, 6, 48)] == [1000, 400, 0]


def test_bootstrap_gives_the_wider_of_the_intervals_over_prompts_and_categories():
    """Scores differ between 8 categories only, so that 64 prompts are 8 independent samples."""
    rng = np.random.default_rng(7)
    level = rng.normal(0, 1, 8)
    categories = np.repeat(np.arange(8), 8)
    values = level[categories] + rng.normal(0, 0.01, 64)
    by_both = Bootstrap(np.arange(64), 4000, 0.95, 0, categories)
    found = by_both.interval(values)
    half = stats.t.ppf(0.975, 7) * stats.sem(level)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert by_both.wider(values) == "categories"
    # Scores that balance within each category are certain over categories, and not over prompts.
    balanced = np.tile([-1.0, 1.0], 32)
    found = by_both.interval(balanced)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 / np.sqrt(64), rel=0.1)
    assert by_both.wider(balanced) == "prompts"


def test_one_sample_without_a_category_does_not_hide_the_likeness_of_the_others():
    level = np.random.default_rng(5).normal(0, 1, 12).repeat(4)
    samples = [Sample(i, f"prompt {i}", 0, f"category {i // 4}", "test") for i in range(48)]
    settings = BootstrapSettings(resamples=2000)
    whole = Bootstrap.of_samples(samples, settings, 0).interval(level)
    samples[0] = replace(samples[0], category=None)
    one_unknown = Bootstrap.of_samples(samples, settings, 0)
    assert one_unknown.categories == 13
    found = one_unknown.interval(level)
    half = stats.t.ppf(0.975, 11) * stats.sem(level[::4])  # of twelve independent categories
    for interval in (whole, found):
        assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.15)
    samples = [replace(sample, category=None) for sample in samples]
    assert Bootstrap.of_samples(samples, settings, 0).categories is None


def test_bootstrap_of_few_categories_resamples_prompts_only():
    bootstrap = Bootstrap(np.arange(40), 100, 0.95, 0, np.arange(40) % 4)
    assert (bootstrap.categories, bootstrap.few_categories) == (None, 4)
    assert len(bootstrap.counts) == 1
    enough = Bootstrap(np.arange(40), 100, 0.95, 0, np.arange(40) % 5)
    assert (enough.categories, enough.few_categories) == (5, None)
    # At this level eight clusters have an interval.
    assert Bootstrap(np.arange(40), 1000, 0.99, 0, np.arange(40) % 7).few_categories == 7
    assert Bootstrap(np.arange(40), 100, 0.95, 0).few_categories is None


def test_p_value_equals_that_of_the_normal_approximation():
    values = np.random.default_rng(2).normal(0.2, 1, 100)
    bootstrap = Bootstrap(np.arange(100), 20_000, 0.95, 0)
    z = values.mean() / (values.std() / 10)
    assert bootstrap.p_value(values) == pytest.approx(stats.norm.sf(z), abs=0.006)
    assert bootstrap.p_value(-values) == pytest.approx(1 - bootstrap.p_value(values), abs=1e-4)
    assert bootstrap.p_value(np.full(100, 0.5)) == pytest.approx(1 / 20_001)
    assert bootstrap.p_value(np.zeros(100)) == 1
    assert bootstrap.p_value(np.full(100, np.nan)) is None


def test_p_value_is_the_larger_of_prompts_and_categories():
    categories = np.repeat(np.arange(10), 20)
    values = np.repeat(np.random.default_rng(1).normal(0.4, 1, 10), 20)
    by_prompt = Bootstrap(np.arange(200), 4000, 0.95, 0).p_value(values)
    both = Bootstrap(np.arange(200), 4000, 0.95, 0, categories).p_value(values)
    z = values.mean() / (values.std() / np.sqrt(10))
    assert both == pytest.approx(stats.norm.sf(z), abs=0.03)
    assert by_prompt < both
    assert Bootstrap(np.zeros(5), 100, 0.95, 0).p_value(np.ones(5)) is None


def test_error_of_another_source_widens_the_interval_in_quadrature():
    bootstrap = Bootstrap(np.arange(400), 4000, 0.95, 0)
    values = np.random.default_rng(0).standard_normal(400)
    plain, wide = bootstrap.interval(values), bootstrap.interval(values, 0.1)
    standard_error = values.std() / 20
    expected = 2 * 1.96 * np.hypot(standard_error, 0.1)
    assert wide.high - wide.low == pytest.approx(expected, rel=0.05)
    assert wide.mean == plain.mean
    shifted = values - values.mean() + 0.2
    assert bootstrap.p_value(shifted) < 0.001
    assert bootstrap.p_value(shifted, 0.1) == pytest.approx(0.037, abs=0.012)


def test_expanded_tails_of_many_clusters_are_those_of_the_level():
    assert expanded_tails(0.95, 10**6) == pytest.approx((0.025, 0.975), abs=1e-5)


def test_interval_of_few_clusters_covers_as_often_as_that_of_student():
    covered = of_student = 0
    for seed in range(100):
        values = np.random.default_rng(seed).standard_normal(8)
        found = Bootstrap(np.arange(8), 200, 0.95, seed).interval(values)
        covered += found.low <= 0 <= found.high
        low, high = stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
        of_student += low <= 0 <= high
    assert abs(covered - of_student) <= 4
    assert covered >= 90
