"""Refitted ridge probes against scikit-learn on pixels."""

import numpy as np
import pytest
from cell_data import predict_slowly, probe_on_pixels, refit_data
from scipy.stats import spearmanr

from ldmprobe_core.analysis.generalization.refits import TestScorer, ordered_by_prompt

TRAIN, VALIDATION, TEST = np.arange(20), np.arange(20, 28), np.arange(28, 40)


@pytest.mark.parametrize(
    ("prop", "missing"), [("depth", False), ("depth", True), ("foreground", False)]
)
def test_fit_equals_scikit_learn_on_pixels(prop, missing):
    data = refit_data(prop, missing)
    members = np.array([0, 3, 4, 9, 17])
    probe = data.fit(data.sums(members[:2]) + data.sums(members[2:]), data.sums(VALIDATION))
    fit, term, penalty = probe_on_pixels(data, members, VALIDATION)
    np.testing.assert_allclose(probe.weight, fit.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(probe.position, term, rtol=1e-12)
    assert probe.penalty == penalty
    np.testing.assert_allclose(
        data.predict(probe, TEST, None), predict_slowly(data, fit, term, TEST), atol=1e-6
    )


def test_fit_takes_the_overall_mean_at_a_position_that_was_not_measured():
    data = refit_data("depth", missing=True)
    members = np.arange(3)  # no pixel of their first token was measured
    probe = data.fit(data.sums(members), data.sums(VALIDATION))
    overall = np.nanmean(data.labels.maps["depth"][members])
    assert probe.position[0, 0] == pytest.approx(overall)


def test_refit_data_leaves_out_samples_with_nonfinite_activations():
    data = refit_data("depth")
    data.activations[[2, 21, 30], 1, 2, 0] = [np.inf, np.nan, np.inf]
    assert 2 not in data.train
    assert 21 not in data.validation
    probe = data.fit(data.sums(data.train), data.sums(data.validation))
    tokens = data.predict(probe, TEST, None)
    assert np.flatnonzero(np.isnan(tokens).any((1, 2))) == [2]
    scores = TestScorer(data.labels, "depth", TEST).scores(tokens)
    assert np.isnan(scores[:, 2]).all()
    assert np.isfinite(np.delete(scores, 2, axis=1)).all()


def test_test_scorer_scores_the_test_samples_at_full_size():
    data = refit_data("depth")
    tokens = np.random.default_rng(0).normal(size=(12, 4, 4))
    scores = TestScorer(data.labels, "depth", TEST).scores(tokens, headline_only=True)
    full = tokens.repeat(2, 1).repeat(2, 2)
    expected = [
        spearmanr(p.ravel(), t.ravel()).statistic
        for p, t in zip(full, data.labels.maps["depth"][TEST], strict=True)
    ]
    np.testing.assert_allclose(scores, [expected], atol=1e-12)


def test_cut_has_the_best_dice_of_all_tried():
    data = refit_data("foreground")
    probe = data.fit(data.sums(TRAIN), data.sums(VALIDATION))
    predicted = probe.predict(data.activations[TRAIN]).repeat(2, 1).repeat(2, 2)
    truth = data.labels.maps["foreground"][TRAIN]

    def dice(cut):
        mask = predicted > cut
        return np.mean(2 * (mask & truth).sum((1, 2)) / (mask.sum((1, 2)) + truth.sum((1, 2))))

    cut = data.cut(probe, TRAIN)
    assert dice(cut) >= max(dice(c) for c in np.quantile(predicted, np.arange(0, 64) / 64)) - 1e-12
    assert refit_data("depth").cut(probe, TRAIN) is None


def test_ordered_by_prompt_keeps_the_samples_of_a_prompt_together():
    prompts = np.array(["b", "a", "b", "c", "a", "c", "b"])
    order = ordered_by_prompt(np.arange(10, 17), prompts, np.random.default_rng(1))
    assert sorted(order) == list(range(10, 17))
    names = prompts[order - 10]
    assert (names[1:] != names[:-1]).sum() == 2
