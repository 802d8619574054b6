"""Curves of re-splits against probes of scikit-learn that are fitted and scored one by one."""

from itertools import pairwise

import numpy as np
import pytest
from cell_data import PENALTIES, cell_samples, predict_slowly, probe_on_pixels, refit_data
from scipy.stats import spearmanr

from ldmprobe_core.analysis.generalization.resplits import (
    MOST_BLOCKS,
    RESPLITS,
    ResplitCurves,
    Resplits,
    ResplitScorer,
    choose_curves,
)
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.probing.label_set import LabelSet

TEST = np.arange(28, 40)


def prompts_of(samples):
    return np.array([sample.group for sample in samples])


def drawn(data, per_prompt=2):
    resplits = Resplits.draw(data.labels, prompts_of(cell_samples(per_prompt=per_prompt)), seed=0)
    return resplits


def parts(resplits, number):
    return (
        np.sort(np.concatenate([resplits.blocks[i] for i in np.flatnonzero(part[number])]))
        for part in (resplits.train, resplits.validation)
    )


def test_resplits_divide_the_prompts_outside_the_test_split_in_the_same_shares():
    data, prompts = refit_data("depth"), prompts_of(cell_samples())
    resplits = drawn(data)
    divisions = set()
    for number in range(RESPLITS):
        train, validation = parts(resplits, number)
        assert sorted([*train, *validation]) == list(range(28))
        assert not set(prompts[train]) & set(prompts[validation])
        assert (len(train), len(validation)) == (20, 8)
        divisions.add(tuple(train))
    assert len(divisions) > RESPLITS / 2


def test_many_prompts_share_blocks_of_nearly_equal_size():
    maps = {"depth": np.zeros((500, 1, 1))}
    means = {"depth": np.zeros((1, 1))}
    labels = LabelSet(maps, means, np.arange(200), np.arange(200, 301), np.arange(200, 500))
    resplits = Resplits.draw(labels, np.arange(500).astype(str), seed=1)
    sizes = [len(block) for block in resplits.blocks]
    assert len(sizes) == MOST_BLOCKS
    assert set(sizes) == {12, 13}
    assert sorted(np.concatenate(resplits.blocks)) == list(range(301))
    assert resplits.validation.sum(1).tolist() == [8] * RESPLITS  # 101 of 301 prompts


def test_one_training_prompt_cannot_be_divided_again():
    data = refit_data("depth")
    assert Resplits.draw(data.labels, np.repeat("one prompt", 40), seed=0) is None


def test_inflation_makes_up_for_overlapping_training_parts():
    """Means of 18 of 24 values vary as means of 18 independent ones, after the factor."""
    rng = np.random.default_rng(0)
    spread = []
    for _ in range(300):
        values = rng.standard_normal(24)
        chosen = np.stack([rng.permutation(24) < 18 for _ in range(RESPLITS)])
        resplits = Resplits([np.array([i]) for i in range(24)], chosen, ~chosen)
        means = (chosen @ values) / 18
        spread.append((resplits.inflation * (means - means.mean())).var(ddof=1))
    assert np.mean(spread) == pytest.approx(1 / 18, rel=0.1)


@pytest.mark.parametrize("missing", [False, True])
def test_scores_equal_those_of_probes_fitted_to_pixels(missing):
    data = refit_data("depth", missing)
    resplits = drawn(data)
    scorer = ResplitScorer(data.labels, "depth", PENALTIES, resplits, TEST)
    on_test, on_validation = scorer.scores(data.activations)
    truth = data.labels.maps["depth"]
    for number in range(0, RESPLITS, 5):
        train, validation = parts(resplits, number)
        fit, term, _ = probe_on_pixels(data, train, validation)

        def expected(members, fit=fit, term=term):
            full = predict_slowly(data, fit, term, members).repeat(2, 1).repeat(2, 2)
            known = [~np.isnan(truth[i]) for i in members]
            return [
                spearmanr(p[k], truth[i][k]).statistic
                for p, i, k in zip(full, members, known, strict=True)
            ]

        np.testing.assert_allclose(on_test[number], expected(TEST), atol=1e-6)
        of_validation = np.isin(resplits.samples, validation)
        np.testing.assert_allclose(
            on_validation[number, of_validation],
            expected(resplits.samples[of_validation]),
            atol=1e-6,
        )
        assert np.isnan(on_validation[number, ~of_validation]).all()


def test_masks_are_cut_on_the_training_part_of_each_resplit():
    data = refit_data("foreground")
    resplits = drawn(data)
    scorer = ResplitScorer(data.labels, "foreground", PENALTIES, resplits, TEST)
    on_test, _ = scorer.scores(data.activations)
    truth = data.labels.maps["foreground"][TEST]
    for number in (0, 7):
        train, validation = parts(resplits, number)
        probe = data.fit(data.sums(train), data.sums(validation))
        mask = data.predict(probe, TEST, data.cut(probe, train)).repeat(2, 1).repeat(2, 2) > 0
        dice = 2 * (mask & truth).sum((1, 2)) / (mask.sum((1, 2)) + truth.sum((1, 2)))
        np.testing.assert_allclose(on_test[number], dice)


@pytest.mark.parametrize("missing", [False, True])
def test_position_scores_are_those_of_each_resplits_mean_map(missing):
    data = refit_data("depth", missing)
    resplits, truth = drawn(data), data.labels.maps["depth"]
    scorer = ResplitScorer(data.labels, "depth", PENALTIES, resplits, TEST)
    scores = scorer.position_scores((8, 8))
    for number in (0, 7):
        mean = np.nanmean(truth[next(parts(resplits, number))], axis=0)
        known = ~np.isnan(truth)
        expected = [spearmanr(mean[known[i]], truth[i][known[i]]).statistic for i in TEST]
        np.testing.assert_allclose(scores[number], expected)


def test_position_scores_of_masks_are_cut_on_the_training_part():
    data = refit_data("foreground")
    resplits, truth = drawn(data), data.labels.maps["foreground"]
    scores = ResplitScorer(data.labels, "foreground", PENALTIES, resplits, TEST).position_scores(
        (8, 8)
    )

    def dice(mean, cut, masks):
        both = ((mean > cut) & masks).sum((1, 2))
        return 2 * both / ((mean > cut).sum() + masks.sum((1, 2)))

    for number in (0, 7):
        train = truth[next(parts(resplits, number))]
        mean = train.mean(0)
        cuts = np.r_[-1, np.unique(mean)]
        best = cuts[np.argmax([dice(mean, cut, train).mean() for cut in cuts])]
        np.testing.assert_allclose(scores[number], dice(mean, best, truth[TEST]))


def test_samples_with_nonfinite_activations_are_left_out():
    data = refit_data("depth")
    data.activations[[1, 22, 30], 0, 0, 0] = np.nan
    scorer = ResplitScorer(data.labels, "depth", PENALTIES, drawn(data), TEST)
    on_test, on_validation = scorer.scores(data.activations)
    assert np.isnan(on_test[:, 2]).all()
    assert np.isfinite(np.delete(on_test, 2, axis=1)).all()
    members = scorer.resplits.samples
    assert np.isnan(on_validation[:, np.isin(members, [1, 22])]).all()
    data.activations[:28] = np.inf
    on_test, _ = scorer.scores(data.activations)
    assert np.isnan(on_test).all()


def test_each_resplit_chooses_its_layer_by_the_mean_validation_score():
    on_validation = np.full((2, 3, 4, 6), np.nan)  # layer, step, re-split, member
    best = [1, 0, 1, 1]
    for number, layer in enumerate(best):
        on_validation[layer, :, number, number : number + 2] = 0.8
        on_validation[1 - layer, :, number, number : number + 2] = 0.7
    on_test = np.random.default_rng(0).random((2, 3, 4, 5))
    position = np.zeros((4, 5))
    curves = choose_curves(["a", "b"], on_test, on_validation, np.arange(6), position, 1.5)
    assert curves.layers == ["b", "a", "b", "b"]
    assert list(curves.choices.items()) == [("b", 3), ("a", 1)]
    np.testing.assert_array_equal(
        curves.scores, [on_test[layer, :, number] for number, layer in enumerate(best)]
    )


def test_deviations_are_from_the_mean_of_the_resplits():
    scores = np.array([[[1.0, 5]], [[2, np.nan]], [[6, 7]]])
    position = np.array([[0.0, 1], [3, 1], [3, 4]])
    curves = ResplitCurves(["a"] * 3, scores, position, 2.0)
    np.testing.assert_allclose(curves.deviations, [[[-4, -2]], [[-2, 0]], [[6, 2]]])
    np.testing.assert_allclose(curves.position_deviations, [[-4, -2], [2, -2], [2, 4]])


def test_summary_tells_which_layers_the_resplits_choose(finished_run):
    for result in load_summary(finished_run).properties.values():
        layer = result.layer
        assert sum(layer.resplits.values()) == RESPLITS
        assert set(layer.resplits) <= set(layer.tied)
        assert layer.resplits[layer.name] == max(layer.resplits.values())
        assert all(a >= b for a, b in pairwise(layer.resplits.values()))
