"""Choice of cells by validation scores, and counts of undefined scores, of made-up scores."""

import numpy as np
import pytest

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


def controls_of(found, without_cells=None):
    position = np.full((len(found.prop.metrics), 40), 0.3)
    curves = found.curves(position[0], dict.fromkeys(RIVALS.values(), np.full((3, 40), 0.3)))
    record = found.to_record(position, without_cells or {}, curves, np.zeros((40, 2, 2)), 0.0, {})
    return record.controls.by_name()


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
