"""Depth labelers: normalisation and sign."""

import json

import numpy as np
import pytest
import torch
from labeler_weights import depth_anything, dpt, glpn
from safetensors.torch import load_file, save_file
from transformers import DPTForDepthEstimation, DPTImageProcessor

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.registry import check_labeler, load_labeler
from ldmprobe_core.study.probe_sections import LabelerSpec

CPU = torch.device("cpu")


def test_load_midas_gives_the_networks_inverse_depth_negated_and_normalised(loaded, source_images):
    spec, labeler = loaded("depth", "midas")
    model = DPTForDepthEstimation.from_pretrained(spec.weights).eval()
    processor = DPTImageProcessor.from_pretrained(spec.weights)
    with torch.no_grad():
        raw = model(**processor(list(source_images), return_tensors="pt")).predicted_depth
        big = torch.nn.functional.interpolate(
            raw[:, None], (48, 64), mode="bicubic", align_corners=False
        )[:, 0]
    np.testing.assert_allclose(
        labeler(source_images), -(big.numpy() - 15.740597) / 9.281932, atol=1e-4
    )
    assert "inverse" in labeler.units


def test_depth_labeler_sign_follows_the_models_convention(source_images, tmp_path):
    depth_anything(tmp_path / "relative")
    depth_anything(tmp_path / "metric", "metric")
    signs = {}
    for kind in ("relative", "metric"):
        spec = LabelerSpec(name="depth-anything", weights=str(tmp_path / kind))
        signs[kind] = load_labeler("depth", spec, CPU)
    assert signs["relative"].sign == -1
    assert signs["metric"].sign == 1
    glpn(tmp_path / "glpn")
    spec = LabelerSpec(name="transformers", weights=str(tmp_path / "glpn"))
    assert load_labeler("depth", spec, CPU).sign == 1


def test_locate_transformers_depth_refuses_a_model_type_of_unknown_sign(tmp_path):
    glpn(tmp_path / "new")
    path = tmp_path / "new" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "marvel"}))
    with pytest.raises(UserError, match=r"labels\.depth.*'marvel'.*use a model of type dpt"):
        check_labeler("depth", LabelerSpec(name="transformers", weights=str(tmp_path / "new")))


def test_midas_refuses_a_model_of_another_type(tmp_path):
    """GLPN gives depth in metres: its negation would make what is near the farther."""
    glpn(tmp_path / "glpn")
    spec = LabelerSpec(name="midas", weights=str(tmp_path / "glpn"))
    with pytest.raises(UserError, match=r"labels\.depth is 'midas'.*type 'glpn'.*Fix: use DPT"):
        check_labeler("depth", spec)
    with pytest.raises(UserError, match="type 'glpn'"):
        load_labeler("depth", spec, CPU)


@pytest.mark.parametrize(
    ("backbone", "known"),
    [
        ({"backbone_config": {"model_type": "dinov2"}}, False),
        ({"backbone": "facebook/dinov2-base"}, False),
        ({"backbone_config": {"model_type": "dinov2_with_registers"}}, False),
        ({"backbone_config": None, "backbone": None}, True),
    ],
)
@pytest.mark.parametrize("name", ["midas", "transformers"])
def test_dpt_on_another_backbone_than_those_of_midas_has_no_known_sign(
    tmp_path, name, backbone, known
):
    dpt(tmp_path / "dpt")
    path = tmp_path / "dpt" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | backbone))
    spec = LabelerSpec(name=name, weights=str(tmp_path / "dpt"))
    if known:
        assert load_labeler("depth", spec, CPU).sign == -1
    else:
        with pytest.raises(UserError, match=r"backbone '.*dinov2.*does not say.*Fix: use a DPT"):
            check_labeler("depth", spec)


@pytest.mark.parametrize(
    ("name", "write", "unused"),
    [
        ("midas", dpt, "neck.fusion_stage.layers.0.residual_layer1."),
        ("depth-anything", depth_anything, "backbone.embeddings.mask_token"),
    ],
)
def test_depth_labelers_do_without_tensors_that_are_never_used(
    loaded, source_images, tmp_path, name, write, unused
):
    """Intel/dpt-large lacks those of a layer, and the library fills them with random numbers."""
    _, complete = loaded("depth", name)
    write(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    state = load_file(path)
    kept = {key: value for key, value in state.items() if not key.startswith(unused)}
    assert len(kept) < len(state)
    save_file(kept, path, {"format": "pt"})
    spec = LabelerSpec(name=name, weights=str(tmp_path / "model"))
    assert len(check_labeler("depth", spec)) == 16
    labels = load_labeler("depth", spec, CPU)(source_images)
    np.testing.assert_array_equal(labels, complete(source_images))
