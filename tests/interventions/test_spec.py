"""Settings of an intervention."""

import json

import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.spec import Intervention, parse_intervention


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
        ({"targets": []}, "targets are empty or repeated"),
        ({"targets": [{"dx": 0.2}, {"dx": 0.2}]}, "targets are empty or repeated"),
    ],
)
def test_parse_intervention_names_the_wrong_field(settings, message):
    with pytest.raises(UserError, match=message):
        parse_intervention(settings)
