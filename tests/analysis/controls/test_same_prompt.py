"""Scores of a probe's maps against the labels of other images of the same prompt."""

import numpy as np
import pytest
from scipy import stats

from ldmprobe_core.analysis.controls.same_prompt import MOST_PARTNERS, same_prompt_scores
from ldmprobe_core.probing.label_set import LabelSet

COUNTS = [3, 1, 2, 2, 2, 7, 2]


@pytest.fixture
def data():
    """Predictions and depth maps of images, of which `COUNTS` have the same prompt."""
    rng = np.random.default_rng(0)
    prompts = rng.permutation(np.repeat([f"p{i}" for i in range(len(COUNTS))], COUNTS))
    n = len(prompts)
    depth = rng.normal(size=(n, 8, 8))
    labels = LabelSet({"depth": depth}, {"depth": depth.mean(0)}, *[np.arange(n)] * 3)
    return rng.normal(size=(n, 4, 4)), labels, prompts


def test_same_prompt_scores_equal_a_loop_over_other_images(data):
    predicted, labels, prompts = data
    n = len(prompts)
    found = same_prompt_scores(predicted, None, labels, "depth", np.arange(n), prompts)[0]
    for i in range(n):
        group = list(np.flatnonzero(prompts == prompts[i]))
        place = group.index(i)
        others = (group[place + 1 :] + group[:place])[:MOST_PARTNERS]
        big = predicted[i].repeat(2, 0).repeat(2, 1).ravel()
        scores = [stats.spearmanr(big, labels.maps["depth"][j].ravel()).statistic for j in others]
        expected = np.mean(scores) if others else np.nan
        assert found[i] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_same_prompt_scores_need_five_prompts_with_several_images(data):
    predicted, labels, _ = data
    prompts = np.array(["a", "b", "c", "d"] * 2 + [f"alone {i}" for i in range(11)])
    members = np.arange(len(prompts))
    assert same_prompt_scores(predicted, None, labels, "depth", members, prompts) is None


def test_same_prompt_scores_of_maps_that_the_prompt_determines_equal_the_own_scores():
    rng = np.random.default_rng(1)
    depth = rng.normal(size=(6, 8, 8)).repeat(2, 0)
    labels = LabelSet({"depth": depth}, {"depth": depth.mean(0)}, *[np.arange(12)] * 3)
    predicted = depth.reshape(12, 4, 2, 4, 2).mean((2, 4))
    prompts = np.arange(6).repeat(2)
    found = same_prompt_scores(predicted, None, labels, "depth", np.arange(12), prompts)
    np.testing.assert_allclose(found, labels.scorer("depth", (4, 4)).scores(predicted))


def test_same_prompt_scores_without_a_prediction_are_undefined():
    """A mask's probe has no cut, nan, where it could not be fitted."""
    masks = np.random.default_rng(2).random((12, 8, 8)) > 0.5
    labels = LabelSet({"foreground": masks}, {"foreground": masks.mean(0)}, *[np.arange(12)] * 3)
    prompts, nothing = np.arange(6).repeat(2), np.full((12, 4, 4), np.nan)
    found = same_prompt_scores(nothing, np.nan, labels, "foreground", np.arange(12), prompts)
    assert np.isnan(found).all()
    predicted = np.random.default_rng(3).random((12, 4, 4))
    every = same_prompt_scores(predicted, 0.5, labels, "foreground", np.arange(12), prompts)
    predicted[4, 1, 2] = np.inf
    some = same_prompt_scores(predicted, 0.5, labels, "foreground", np.arange(12), prompts)
    assert np.isfinite(every).all()
    assert np.isnan(some[:, 4]).all()
    np.testing.assert_array_equal(np.delete(some, 4, 1), np.delete(every, 4, 1))
