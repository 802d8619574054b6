"""Settings of an intervention."""

import json
import math

import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.spec import (
    Intervention,
    parse_intervention,
    published_settings,
)


def test_intervention_name_depends_on_every_setting():
    assert Intervention().name == Intervention().name
    assert Intervention(strength=0.5).name != Intervention().name
    assert json.loads(Intervention().model_dump_json())["confidence"] == 0.98


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "adam", "strength": 0.3},
            r"strength: the method adam does not use it \(0\.3\)",
        ),
        ({"method": "adam", "confidence": 0.9}, "confidence: the method adam"),
        ({"method": "adam", "metric": "l2"}, "metric: the method adam .*set method to exact"),
        ({"method": "adam", "doses": []}, "doses: the method adam"),
        ({"learning_rate": 0.1}, "learning_rate: the method exact .* leave learning_rate out"),
        ({"iterations": 128}, r"iterations: the method exact does not use it \(128\)"),
        ({"method": "leace", "targets": [{"mirror": True}]}, r"targets: .*leace .*\(mirror\)"),
        ({"method": "leace", "targets": [{"dx": 0.2}]}, r"targets: .*\(shift 0\.2, 0\)"),
        ({"method": "mean_projection", "kind": "ridge"}, r"kind: .*mean_projection .*\(ridge\)"),
        ({"method": "donor", "strength": 0.5}, "strength: .* exact or leace or mean_projection"),
        ({"method": "donor", "doses": [8]}, r"doses: the method donor does not use it \(8\.0\)"),
        ({"chosen": []}, "chosen: no sample is named"),
        ({"chosen": [3, 1, 3]}, r"chosen: a sample is named twice \(3\)"),
        ({"chosen": [3, 1], "samples": 8}, r"samples: it does not apply to chosen samples \(8\)"),
        ({"chosen": [3, 1], "samples": 2}, "samples: it does not apply to chosen samples"),
        ({"windows": 2, "doses": [1.0, 4.0]}, r"doses: a causal map has one dose \(1, 4\)"),
        (
            {"step": 3},
            "step is not a key of an intervention; an intervention has: prop, targets",
        ),
        (
            {"targets": [{"x": 1}]},
            "targets.0.x is not a key of an intervention; targets.0 has: dx, dy, scale",
        ),
        ([], "^intervention: intervention is"),
        ({"controls": ["random"]}, "controls: 'random' is not a null edit"),
        ({"method": "donor", "controls": ["orthogonal"]}, "not a null edit of the method donor"),
        ({"doses": [2.0, 2.0]}, "doses are repeated"),
        (
            {"method": "leace", "doses": [2.0]},
            r"doses: the method leace does not use it \(2\.0\)",
        ),
        ({"windows": 2, "steps": 1}, "start and steps do not apply to a causal map"),
        ({"targets": []}, "targets are empty or repeated"),
        ({"targets": [{"dx": 0.2}, {"dx": 0.2}]}, "targets are empty or repeated"),
    ],
)
def test_parse_intervention_names_the_wrong_field(settings, message):
    with pytest.raises(UserError, match=message):
        parse_intervention(settings)


def test_intervention_conditions_follow_the_method():
    every = ("edited", "orthogonal", "coherent", "permuted", "own_label")
    assert Intervention().conditions == every
    assert Intervention(controls=()).conditions == ("edited",)
    assert Intervention(controls=("own_label", "orthogonal")).conditions == (
        "edited", "orthogonal", "own_label",
    )  # fmt: skip
    assert Intervention(windows=3).conditions == ("edited", "orthogonal")
    assert Intervention(method="leace").conditions == ("edited", "orthogonal", "coherent")
    assert Intervention(method="donor").conditions == ("edited",)


def test_intervention_settings_of_a_causal_map_may_choose_the_probes_beside_an_erasure():
    spec = parse_intervention({"method": "leace", "windows": 2, "kind": "ridge", "strength": 0.5})
    assert (spec.kind, spec.strength) == ("ridge", 0.5)


def test_intervention_samples_and_doses_are_sorted():
    assert Intervention(chosen=(5, 2, 9)).chosen == (2, 5, 9)
    assert Intervention(doses=(4.0, 1.0, 2.0)).doses == (1.0, 2.0, 4.0)
    assert Intervention(doses=(4.0, 1.0)).name == Intervention(doses=(1.0, 4.0)).name


def test_intervention_doses_have_a_default_for_exact_edits_only():
    assert Intervention().dose_axis == (Intervention().defaults.dose,)
    assert Intervention(doses=(1.0, 3.0)).dose_axis == (1.0, 3.0)
    for spec in (Intervention(doses=()), Intervention(method="adam"), Intervention(method="donor")):
        assert len(spec.dose_axis) == 1
        assert math.isnan(spec.dose_axis[0])


def test_published_settings_are_those_of_the_paper():
    """Chen et al. (2023), section 5: the decoder in 5 steps, and all layers in 3 for depth."""
    kinds = ["plain_ridge", "plain_logistic", "adam"]
    foreground = parse_intervention(published_settings("foreground", kinds))
    assert (foreground.method, foreground.iterations, foreground.learning_rate) == (
        "adam",
        128,
        5e-3,
    )
    assert (foreground.steps, foreground.layers) == (5, ("up_blocks.*",))
    depth = parse_intervention(published_settings("depth", kinds))
    assert (depth.steps, depth.layers, depth.targets[0].stretch) == (3, ("*",), 9.0)
    with pytest.raises(UserError, match="the paper does not edit this property"):
        published_settings("shading", kinds)
    assert foreground.kind == depth.kind == "adam"


@pytest.mark.parametrize(
    ("prop", "kinds", "expected"),
    [
        ("foreground", ["plain_ridge", "plain_logistic"], "plain_logistic"),
        ("depth", ["plain_ridge", "plain_logistic"], "plain_ridge"),
        ("depth", ["ridge", "adam"], "adam"),
        ("foreground", ["ridge", "logistic"], "adam or plain_logistic"),
        ("foreground", ["plain_ridge", "logistic"], "adam or plain_logistic"),
        ("depth", ["ridge", "plain_logistic"], "adam or plain_ridge"),
    ],
)
def test_published_settings_need_probes_without_a_position_term(prop, kinds, expected):
    if " or " not in expected:
        assert published_settings(prop, kinds)["kind"] == expected
        return
    message = (
        rf"kind: the published settings need probes of {prop} without a position term, and the "
        rf"run has none \({', '.join(kinds)}\)\. Fix: add {expected} to probes\.kinds"
    )
    with pytest.raises(UserError, match=message):
        published_settings(prop, kinds)
