"""Published results stand beside those of a study of the same model, steps and labels only."""

import pytest

from ldmprobe_core.analysis.report.published import SCORES, applies, score_of
from ldmprobe_core.study.loading import load_study


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], True),
        (["model.source=/models/stable-diffusion-v1-4/"], True),
        (["model.source=/models/stable-diffusion-v1-4-of-cats"], False),
        (["sampling.steps=50"], False),
        (["source=images", "images.folder=/pictures"], False),
        (["capture.layers=[vae]"], False),
        (["capture.layers=[self-attention, vae.decoder.*]"], False),
        (["capture.layers=[cross-attention]"], True),
    ],
)
def test_applies_to_the_published_model_and_steps(changes, expected):
    assert applies(load_study("poster", changes)) is expected


def test_score_of_a_property_with_other_labels_is_none():
    study = load_study("poster", ["labels.depth=depth-anything"])
    found = {prop: score_of(study, prop) for prop in ("foreground", "depth", "shading", "edges")}
    assert found == {**SCORES, "depth": None, "edges": None}


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        (["labels.threshold=0.5"], {"foreground"}),
        (["labels.depth.weights=/weights/dpt-swin2-tiny"], {"depth"}),
        (["labels.depth.weights=/weights/dpt-large/"], set()),
    ],
)
def test_score_of_labels_of_another_threshold_or_network_is_none(changes, missing):
    study = load_study("poster", changes)
    assert {prop for prop in SCORES if score_of(study, prop) is None} == missing
