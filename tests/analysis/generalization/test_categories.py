"""Category hold-out and scores by category, against refits with scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from cell_data import cell_samples, predict_slowly, probe_on_pixels, refit_data
from scipy.stats import spearmanr

from ldmprobe_core.analysis.generalization.categories import (
    FOLDS,
    category_folds,
    category_scores,
    holdout_record,
)
from ldmprobe_core.analysis.generalization.refits import TestScorer, ordered_by_prompt
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.study.probe_sections import BootstrapSettings

SETTINGS = BootstrapSettings(resamples=100)
TEST = np.arange(28, 40)


def correlations(data, tokens, members):
    full = tokens.repeat(2, 1).repeat(2, 2)
    truth = data.labels.maps["depth"][members]
    return np.array(
        [spearmanr(p.ravel(), t.ravel()).statistic for p, t in zip(full, truth, strict=True)]
    )


def test_category_folds_hold_every_category_once():
    folds = category_folds(cell_samples(), seed=0)
    assert len(folds) == FOLDS
    assert sorted(name for fold in folds for name in fold) == [f"c{i}" for i in range(6)]
    assert folds == category_folds(cell_samples(), seed=0)
    assert category_folds(cell_samples(4), seed=0) is None
    unknown = [*cell_samples()[:-1], replace(cell_samples()[-1], category=None)]
    assert category_folds(unknown, seed=0) is None


def test_holdout_record_equals_refits_without_each_fold():
    data, samples = refit_data("depth"), cell_samples()
    folds = category_folds(samples, seed=0)
    bootstrap = Bootstrap.of_samples([samples[i] for i in TEST], SETTINGS, 0)
    record = holdout_record(
        data, folds, samples, TestScorer(data.labels, "depth", TEST), bootstrap, 3, 0
    )
    fit, term, _ = probe_on_pixels(data, np.arange(20), np.arange(20, 28))
    ordinary = correlations(data, predict_slowly(data, fit, term, TEST), TEST)
    unseen = np.full(12, np.nan)
    for fold in folds:
        outside = np.array([sample.category not in fold for sample in samples])
        train = np.flatnonzero(outside[:20])
        fit, term, _ = probe_on_pixels(data, train, 20 + np.flatnonzero(outside[20:28]))
        members = 28 + np.flatnonzero(~outside[28:])
        tokens = predict_slowly(data, fit, term, members)
        unseen[members - 28] = correlations(data, tokens, members)
    assert record.step == 3
    expected = bootstrap.interval(ordinary)
    assert record.ordinary.model_dump() == pytest.approx(expected.model_dump())
    assert record.unseen.mean == pytest.approx(unseen.mean())
    assert record.difference.mean == pytest.approx((unseen - ordinary).mean())
    assert record.difference.low == pytest.approx(bootstrap.interval(unseen - ordinary).low)
    # The matched probes lack as many training samples as each fold has, but in the order of a
    # random shuffle; all of them keep every validation sample.
    prompts = np.array([sample.group for sample in samples[:20]])
    order = ordered_by_prompt(np.arange(20), prompts, np.random.default_rng(0))
    matched, start = np.full(12, np.nan), 0
    for fold in folds:
        inside = np.array([sample.category in fold for sample in samples])
        stop = start + inside[:20].sum()
        train = np.setdiff1d(np.arange(20), order[start:stop])
        start = stop
        fit, term, _ = probe_on_pixels(data, train, np.arange(20, 28))
        members = 28 + np.flatnonzero(inside[28:])
        tokens = predict_slowly(data, fit, term, members)
        matched[members - 28] = correlations(data, tokens, members)
    assert start == 20
    expected = bootstrap.interval(matched)
    assert record.matched.model_dump() == pytest.approx(expected.model_dump())
    assert record.matched_difference.mean == pytest.approx((unseen - matched).mean())
    assert record.matched_difference.low == pytest.approx(bootstrap.interval(unseen - matched).low)


def test_holdout_record_shows_a_probe_that_does_not_reach_other_categories():
    """Labels follow another channel in each category, so that probes do not carry over."""
    data, samples = refit_data("depth"), cell_samples()
    category = np.array([int(sample.category[1:]) for sample in samples])
    channel = data.activations[np.arange(40), :, :, category % 5].astype(float)
    data.labels.maps["depth"][:] = channel.repeat(2, 1).repeat(2, 2) * np.where(
        category == 5, -1, 1
    ).reshape(-1, 1, 1)
    bootstrap = Bootstrap.of_samples([samples[i] for i in TEST], SETTINGS, 0)
    record = holdout_record(
        data,
        category_folds(samples, seed=0),
        samples,
        TestScorer(data.labels, "depth", TEST),
        bootstrap,
        1,
        0,
    )
    assert record.difference.high < 0
    assert record.matched_difference.mean < -0.1


def test_holdout_record_cuts_the_masks_of_every_fold():
    data, samples = refit_data("foreground"), cell_samples()
    bootstrap = Bootstrap.of_samples([samples[i] for i in TEST], SETTINGS, 0)
    scorer = TestScorer(data.labels, "foreground", TEST)
    record = holdout_record(data, category_folds(samples, 0), samples, scorer, bootstrap, 1, 0)
    probe = data.fit(data.sums(data.train), data.sums(data.validation))
    mask = probe.predict(data.activations[TEST]) > data.cut(probe, data.train)
    mask, truth = mask.repeat(2, 1).repeat(2, 2), data.labels.maps["foreground"][TEST]
    dice = 2 * (mask & truth).sum((1, 2)) / (mask.sum((1, 2)) + truth.sum((1, 2)))
    assert record.ordinary.mean == pytest.approx(dice.mean())
    assert 0.3 < record.unseen.mean < 1


def test_category_scores_average_each_category():
    samples = cell_samples(categories=2, per_prompt=1)[28:]
    scores = np.arange(12.0)
    scores[2] = np.nan
    records = category_scores(scores, samples, SETTINGS, 0)
    assert list(records) == ["c0", "c1"]
    assert records["c0"].samples == 6
    assert records["c0"].score.mean == pytest.approx(np.mean([0, 4, 6, 8, 10]))
    assert records["c1"].score.low > 1
    few = category_scores(scores[:8], samples[:8], SETTINGS, 0)
    assert few["c1"].score.low is None
    assert (
        category_scores(scores, [replace(samples[0], category=None), *samples[1:]], SETTINGS, 0)
        is None
    )
