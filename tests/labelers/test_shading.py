"""Shading labelers: retinex on a known light, Marigold's target, Intrinsic's inverse shading."""

import sys
import types

import numpy as np
import pytest
import torch
from labeler_weights import marigold

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.registry import load_labeler
from ldmprobe_core.labelers.shading import RetinexLabeler
from ldmprobe_core.study.probe_sections import LabelerSpec

CPU = torch.device("cpu")


def test_retinex_labeler_follows_the_light_and_not_the_paint():
    """A smooth ramp of light over a fine checkerboard of paint: the ramp is what is read."""
    ramp = np.linspace(0.1, 1, 64)[None, :].repeat(64, 0)
    paint = 0.4 + 0.4 * (np.indices((64, 64)).sum(0) % 2)
    linear = ramp * paint
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    image = np.rint(srgb * 255).astype(np.uint8)[..., None].repeat(3, -1)
    shading = RetinexLabeler()(image[None])[0]
    assert np.corrcoef(shading.ravel(), ramp.ravel())[0, 1] > 0.97
    assert abs(np.corrcoef(shading.ravel(), paint.ravel())[0, 1]) < 0.05
    flat = RetinexLabeler()(np.full((1, 16, 24, 3), 255, np.uint8))
    np.testing.assert_allclose(flat, 1, rtol=1e-6)


def test_load_marigold_takes_the_shading_among_its_targets(loaded, tmp_path):
    _, labeler = loaded("shading", "marigold")
    assert labeler.target_index == 1
    marigold(tmp_path / "appearance", ("albedo", "material"))
    with pytest.raises(UserError, match=r"does not predict shading, only albedo, material"):
        load_labeler(
            "shading", LabelerSpec(name="marigold", weights=str(tmp_path / "appearance")), CPU
        )


def test_intrinsic_labeler_inverts_the_packages_inverse_shading(monkeypatch, source_images):
    """The package is not on an index: a stand-in with its two functions, as it publishes them."""
    shading = np.linspace(0, 3, 48 * 64).reshape(48, 64)
    calls = []

    def run_gray_pipeline(models, image, **options):
        calls.append((models, image.shape, image.max(), options["maintain_size"]))
        return {"gry_shd": 1 / (shading + 1)}

    package = types.ModuleType("intrinsic")
    package.__spec__ = types.SimpleNamespace()
    package.__path__ = []
    module = types.ModuleType("intrinsic.pipeline")
    module.run_gray_pipeline = run_gray_pipeline
    module.load_models = lambda path, stage, device: (path, stage, device)
    monkeypatch.setitem(sys.modules, "intrinsic", package)
    monkeypatch.setitem(sys.modules, "intrinsic.pipeline", module)
    labeler = load_labeler("shading", LabelerSpec(name="intrinsic"), CPU)
    labels = labeler(source_images)
    np.testing.assert_allclose(labels, np.stack([shading] * 3), rtol=1e-5, atol=1e-6)
    assert calls[0][0] == ("paper_weights", "gray", "cpu")
    assert calls[0][1] == (48, 64, 3)
    assert calls[0][2] <= 1
