"""Checks of declared properties before a run."""

import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.properties import PROPERTIES


def test_check_declarations_refuses_a_colour_map_that_does_not_exist(tiny_study):
    drawing = {"colormap": "virdis"}
    study = tiny_study(properties={"hue": {"kind": "scalar", "drawing": drawing}})
    try:
        with pytest.raises(UserError, match=r"hue\.drawing\.colormap: .*'virdis'.*Fix: choose"):
            plan_study(study)
    finally:
        PROPERTIES.pop("hue")
