"""Choice of cells by validation scores, and counts of undefined scores, of made-up scores."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ldmprobe_core.analysis.controls.training_size import CorrectedDifference
from ldmprobe_core.analysis.curves import RIVALS
from ldmprobe_core.analysis.property_scores import PropertyScores
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.study.probe_kinds import PROBE_KINDS, ProbeKind
from ldmprobe_core.study.properties import property_of

IS_TEST = np.arange(60) >= 20


def scores_of(scores, inputs=None, **more):
    """Scores (kind, step, layer, held-out sample) in every metric, without controls."""
    metrics = len(property_of("depth").metrics)
    inputs = inputs or {}
    parts = {
        "prop": property_of("depth"),
        "kinds": ["ridge", "plain_ridge"],
        "layers": ["a", "b"],
        "conditions": ["probe"],
        "controls": [],
        "scores": scores[None, :, None].repeat(metrics, 2),
        "inputs": {name: one[:, None].repeat(metrics, 1) for name, one in inputs.items()},
        "draws": {},
        "is_test": IS_TEST,
        "validation_groups": np.arange(20),
        "bootstrap": Bootstrap(np.arange(40), 50, 0.95, 0),
    }
    return PropertyScores(**parts | more)


@pytest.fixture
def full():
    """Two kinds at three steps of two layers; the last step of layer b is best."""
    scores = np.random.default_rng(0).uniform(0.4, 0.5, (2, 3, 2, 60))
    scores[0, 2, 1] += 0.2
    return scores


def test_cell_that_is_defined_in_one_easy_image_is_not_the_best(full):
    full[0, 0, 0], full[0, 2, 0] = np.nan, np.nan
    full[0, 0, 0, 3] = full[0, 2, 0, 3] = 0.95
    inputs = {"latents": full[:, :, 1].copy()}
    inputs["latents"][1, 1, 1:20] = np.nan
    inputs["latents"][1, 1, 0] = 0.95
    found = scores_of(full, inputs)
    assert found.best() == (0, 2, 1)
    assert found.best_at(2) == (0, 2, 1)
    assert found.best_of_input("latents") == (0, 2)
    assert found.tied_layers == ["b"]


def test_cell_that_is_defined_in_half_of_the_images_may_be_the_best(full):
    full[0, 2, 1, :10] = np.nan
    assert scores_of(full).best() == (0, 2, 1)
    full[0, 2, 1, 10] = np.nan
    assert scores_of(full).best() != (0, 2, 1)


def test_best_step_of_an_input_control_is_one_at_which_it_has_values(full):
    """Also without a score, as where all pixels of a control are constant."""
    inputs, known = (
        {"clean_pixels": np.full((2, 3, 60), np.nan)},
        {"clean_pixels": np.array([1, 2])},
    )
    assert scores_of(full, inputs, input_steps=known).best_of_input("clean_pixels") == (0, 1)
    inputs["clean_pixels"][1, 2] = 0.5
    assert scores_of(full, inputs, input_steps=known).best_of_input("clean_pixels") == (1, 2)
    assert scores_of(full, inputs).best_of_input("clean_pixels") == (1, 2)


def record_of(found, without_cells=None, corrected=None):
    position = np.full((len(found.prop.metrics), 40), 0.3)
    curves = found.curves(position[0], dict.fromkeys(RIVALS.values(), np.full((3, 40), 0.3)))
    truth = np.zeros((40, 2, 2))
    return found.to_record(position, without_cells or {}, curves, truth, 0.0, {}, corrected)


def controls_of(found, without_cells=None, corrected=None):
    return record_of(found, without_cells, corrected).controls.by_name()


def test_scores_that_a_control_was_not_to_have_are_not_undefined(full):
    """The best cell is at step 3, clean pixels are known at steps 1 and 2 alone."""
    inputs = {"latents": full[:, :, 0].copy(), "clean_pixels": full[:, :, 0].copy()}
    inputs["clean_pixels"][:, 2] = np.nan
    inputs["latents"][:, 2, 50:52] = np.nan
    known = {"latents": np.arange(3), "clean_pixels": np.array([0, 1])}
    found = controls_of(scores_of(full, inputs, input_steps=known))
    assert {name: record.undefined for name, record in found.items()} == {
        "position": 0, "latents": 2, "clean_pixels": 0,
    }  # fmt: skip
    assert found["clean_pixels"].same_cell.mean is None
    assert found["clean_pixels"].difference.low is not None
    known["clean_pixels"] = np.arange(3)
    found = controls_of(scores_of(full, inputs, input_steps=known))
    assert found["clean_pixels"].undefined == 40


def test_image_without_another_of_its_prompt_is_not_undefined(full):
    prompts = np.r_[np.arange(10).repeat(3), np.arange(10, 20)]
    of_others = np.full((len(property_of("depth").metrics), 40), 0.2)
    of_others[:, 28:] = np.nan  # ten images without another of their prompt, and two others
    found = scores_of(full, bootstrap=Bootstrap(prompts, 50, 0.95, 0))
    assert controls_of(found, {"same_prompt": of_others})["same_prompt"].undefined == 2


def test_nonlinear_kind_that_does_not_support_a_property_is_no_control(full, monkeypatch):
    """A kind of an extension, of masks alone: it has no scores of depth."""
    of_masks = ProbeKind(name="forest", title="forest", linear=False, property_kinds=("mask",))
    monkeypatch.setitem(PROBE_KINDS, "forest", of_masks)
    full[1] = np.nan
    assert set(controls_of(scores_of(full, kinds=["ridge", "forest"]))) == {"position"}
    assert set(controls_of(scores_of(full, kinds=["ridge", "mlp"]))) == {"position", "mlp"}


@pytest.mark.parametrize("name", ["shuffled_labels", "permuted_weights"])
def test_probe_is_compared_with_a_control_in_the_controls_own_best_cell(full, name):
    """The probe is best at step 3 of layer b, the control at step 2 of layer a."""
    of_control = np.random.default_rng(1).uniform(0.1, 0.2, full.shape)
    of_control[1, 1, 0] += 0.15
    alone = scores_of(full)
    both = np.stack([full, of_control])[:, :, None].repeat(len(alone.prop.metrics), 2)
    found = controls_of(replace(alone, conditions=["probe", name], controls=[name], scores=both))
    probe, own, same = full[0, 2, 1, 20:], of_control[1, 1, 0, 20:], of_control[0, 2, 1, 20:]
    best = found[name].own_best
    assert (best.kind, best.step, best.layer) == ("plain_ridge", 2, "a")
    assert best.score.mean == pytest.approx(own.mean(), rel=1e-12)
    assert found[name].same_cell.mean == pytest.approx(same.mean(), rel=1e-12)
    assert found[name].difference.mean == pytest.approx((probe - own).mean(), rel=1e-12)


def better_on_test_samples(scores, cell):
    """Raise the test scores of one cell, which are no ground for a choice, far above all others."""
    scores[cell][..., IS_TEST] += 0.5


def test_cells_are_chosen_on_validation_samples_whatever_the_test_samples_say(full):
    inputs = {"latents": np.random.default_rng(1).uniform(0.1, 0.2, (2, 3, 60))}
    inputs["latents"][0, 1] += 0.1
    full[1, 0, 0] += 0.1  # best at step 1
    better_on_test_samples(full, (1, 2, 0))
    better_on_test_samples(full, (0, 0, 1))
    better_on_test_samples(inputs["latents"], (1, 1))
    better_on_test_samples(inputs["latents"], (1, 2))
    inputs["latents"][0, 2, ~IS_TEST] = 0.25  # best kind at step 3, but not of all steps
    found = scores_of(full, inputs)
    assert found.best() == (0, 2, 1)
    assert found.best_at(2) == (0, 2, 1)
    assert found.best_at(0) == (1, 0, 0)
    assert found.best_of_input("latents") == (0, 1)
    record = record_of(found)
    assert (record.best.kind, record.best.step, record.best.layer) == ("ridge", 3, "b")
    assert (record.last.kind, record.last.layer) == ("ridge", "b")
    of_input = inputs["latents"][0, :, IS_TEST].mean(0)
    latents = record.controls.latents
    assert latents.same_cell.mean == pytest.approx(of_input[2], rel=1e-12)
    assert latents.own_best.score.mean == pytest.approx(of_input[1], rel=1e-12)
    assert (latents.own_best.kind, latents.own_best.step) == ("ridge", 2)
    expected = full[0, 2, 1, IS_TEST].mean() - of_input[1]
    assert latents.difference.mean == pytest.approx(expected, rel=1e-12)


def test_interval_of_a_difference_includes_the_choice_of_training_samples(full):
    """Equal differences vary by this alone: the resampled means are normal, with its deviation."""
    found = scores_of(
        full, {"latents": full[:, :, 0]}, bootstrap=Bootstrap(np.arange(40), 20000, 0.95, 0)
    )
    corrected = {"latents": CorrectedDifference(np.full(40, 0.1), 0.05)}
    latents = controls_of(found, corrected=corrected)["latents"]
    # The interval is an expanded percentile interval of 40 prompts.
    half = 0.05 * (40 / 39) ** 0.5 * stats.t.ppf(0.975, 39)
    given = latents.difference
    assert (given.mean, given.low, given.high) == pytest.approx(
        (0.1, 0.1 - half, 0.1 + half), abs=0.004
    )
    assert latents.p == pytest.approx(stats.norm.cdf(-0.1 / 0.05), abs=0.004)


def test_steps_compare_probe_and_inputs_in_the_partial_metric(full):
    """Every metric has other scores; the layer b is shown at all steps."""
    full[0, :, 1] += 0.1
    alone, rng = scores_of(full), np.random.default_rng(1)
    metrics = alone.prop.metrics
    which = metrics.index("spearman_partial")
    assert which > 0
    scores = rng.uniform(0.1, 0.3, (1, 2, len(metrics), 3, 2, 60))
    scores[:, :, 0] = full
    inputs = {"latents": rng.uniform(0.1, 0.3, (2, len(metrics), 3, 60))}
    inputs["latents"][1, 0] += 0.1  # the kind that is best on validation samples
    steps = record_of(replace(alone, scores=scores, inputs=inputs)).steps
    assert [one.step for one in steps] == [1, 2, 3]
    for step, one in enumerate(steps):
        of_probe = scores[0, 0, which, step, 1, 20:]
        of_input = inputs["latents"][1, which, step, 20:]
        assert one.metric == "spearman_partial"
        assert one.score.mean == pytest.approx(full[0, step, 1, 20:].mean(), rel=1e-12)
        assert one.value.mean == pytest.approx(of_probe.mean(), rel=1e-12)
        assert one.less_inputs["latents"].mean == pytest.approx(
            (of_probe - of_input).mean(), rel=1e-9, abs=1e-12
        )
