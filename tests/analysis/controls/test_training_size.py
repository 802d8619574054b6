"""Correction of differences for the number of training samples."""

import numpy as np
import pytest

from ldmprobe_core.analysis.controls.training_size import (
    DIVISIONS,
    corrected_difference,
    scores_of_halves,
    training_halves,
)
from ldmprobe_core.probing.cell import probe_activations
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.study.loading import parse_study


def test_training_halves_have_different_prompts():
    prompts, train = np.arange(30) // 2, np.arange(4, 28)
    halves = training_halves(train, prompts, 0)
    assert len(halves) == 2 * DIVISIONS
    for first, second in zip(halves[::2], halves[1::2], strict=True):
        assert sorted([*first, *second]) == list(train)
        assert not set(prompts[first]) & set(prompts[second])
        assert len(first) == len(second)


def test_training_halves_need_ten_prompts():
    assert training_halves(np.arange(9), np.arange(9), 0) == []


def test_scores_of_halves_are_those_of_a_cell_with_half_of_the_training_samples():
    rng = np.random.default_rng(0)
    activations = rng.normal(size=(30, 4, 4, 3)).astype(np.float16)
    depth = activations[..., 0].astype(float).repeat(2, 1).repeat(2, 2)
    depth = depth + rng.normal(size=depth.shape)
    mean, heldout = {"depth": depth[:20].mean(0)}, np.arange(20, 30)
    labels = LabelSet({"depth": depth}, mean, np.arange(20), np.arange(20, 25), heldout)
    off = {"foreground": None, "shading": None, "class": None}
    study = parse_study({"labels": off, "probes": {"kinds": ["plain_ridge", "ridge"]}})
    halves = [np.arange(10), np.arange(10, 20)]
    found = scores_of_halves(activations, labels, study, ("ridge", "depth"), halves)
    for row, half in zip(found, halves, strict=True):
        part = LabelSet({"depth": depth}, mean, half, labels.validation, heldout)
        expected = probe_activations(activations, part, study)["true"].scores["depth"][1, 0]
        np.testing.assert_array_equal(row, expected)


def test_corrected_difference_removes_a_loss_that_falls_as_one_over_n():
    truth = np.array([0.1, 0.2, 0.3, np.nan])
    difference = truth + 8 / 100
    of_halves = truth + 8 / 50 + np.array([[0.01], [-0.01]])
    found = corrected_difference(difference, of_halves)
    np.testing.assert_allclose(found.values, truth)
    assert found.error == pytest.approx(0.01)
