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
        ({"method": "adam", "strength": 0.3}, "strength and confidence apply to exact edits"),
        ({"prop": "shape"}, "prop: 'shape' cannot be edited"),
        ({"kind": "mlp"}, "kind: 'mlp' is not a linear kind"),
        ({"controls": ["random"]}, "controls: 'random' is not a null edit"),
        ({"method": "donor", "controls": ["orthogonal"]}, "not a null edit of the method donor"),
        ({"doses": [2.0, 2.0]}, "doses are repeated"),
        (
            {"method": "leace", "doses": [2.0]},
            r"doses apply to exact edits only \(method is leace\)",
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


def test_intervention_doses_have_a_default_for_exact_edits_only():
    assert Intervention().dose_axis == (Intervention().defaults.dose,)
    assert Intervention(doses=(1.0, 3.0)).dose_axis == (1.0, 3.0)
    for spec in (Intervention(doses=()), Intervention(method="adam"), Intervention(method="donor")):
        assert len(spec.dose_axis) == 1
        assert math.isnan(spec.dose_axis[0])


def test_published_settings_are_those_of_the_paper():
    """Chen et al. (2023), section 5: the decoder in 5 steps, and all layers in 3 for depth."""
    foreground = parse_intervention(published_settings("foreground"))
    assert (foreground.method, foreground.iterations, foreground.learning_rate) == (
        "adam",
        128,
        5e-3,
    )
    assert (foreground.steps, foreground.layers) == (5, ("up_blocks.*",))
    depth = parse_intervention(published_settings("depth"))
    assert (depth.steps, depth.layers, depth.targets[0].stretch) == (3, ("*",), 9.0)
    with pytest.raises(UserError, match="the paper does not edit this property"):
        published_settings("shading")
