"""Every labeler on tiny weights: size, sign, range, units, and independence of the batch."""

import json
import sys
import types

import numpy as np
import pytest
import tiny_models
import torch
from diffusers import DDIMScheduler, MarigoldIntrinsicsPipeline
from safetensors.torch import save_file
from scipy.ndimage import zoom
from torchvision.models import VGG16_Weights, vgg16
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.registry import check_labeler, labelers_of, load_labeler
from ldmprobe_core.labelers.shading import RetinexLabeler
from ldmprobe_core.labelers.weights import convert
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.sections import LabelerSpec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures():
    """Three pictures that are not square: 48 down, 64 across."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, 6, 8, 3)).astype(float)
    return np.clip(zoom(coarse, (1, 8, 8, 1), order=1), 0, 255).astype(np.uint8)


def dpt(folder):
    torch.manual_seed(0)
    DPTForDepthEstimation(DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
        add_projection=False, readout_type="project",
    )).save_pretrained(folder)  # fmt: skip
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def depth_anything(folder, kind="relative"):
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=28,
        patch_size=14, out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=kind,
    )).save_pretrained(folder)  # fmt: skip
    DPTImageProcessor(
        size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=14
    ).save_pretrained(folder)


def glpn(folder):
    torch.manual_seed(0)
    GLPNForDepthEstimation(GLPNConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )).save_pretrained(folder)  # fmt: skip
    GLPNImageProcessor().save_pretrained(folder)


def classifier(folder):
    torch.manual_seed(0)
    names = {0: "lemon", 1: "orange", 2: "lemon"}
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=16, image_size=32, patch_size=16, id2label=names,
                       label2id={"lemon": 2, "orange": 1})  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def marigold(folder, targets=("albedo", "shading")):
    torch.manual_seed(0)
    count = len(targets)
    MarigoldIntrinsicsPipeline(
        unet=tiny_models.unet(in_channels=4 * (count + 1), out_channels=4 * count),
        vae=tiny_models.vae(),
        scheduler=DDIMScheduler(**tiny_models.NOISE, prediction_type="v_prediction"),
        text_encoder=tiny_models.clip(),
        tokenizer=tiny_models.new_tokenizer(),
        prediction_type="intrinsics",
        target_properties={"target_names": list(targets)},
        default_denoising_steps=2,
        default_processing_resolution=0,
    ).save_pretrained(folder, safe_serialization=True)


def tracer(folder):
    from carvekit.ml.arch.tracerb7.efficientnet import EfficientEncoderB7
    from carvekit.ml.arch.tracerb7.tracer import TracerDecoder

    torch.manual_seed(0)
    network = TracerDecoder(encoder=EfficientEncoderB7(), rfb_channel=[32, 64, 128],
                            features_channels=[48, 80, 224, 640])  # fmt: skip
    folder.mkdir()
    save_file({k: v.contiguous().clone() for k, v in network.state_dict().items()},
              folder / "weights.safetensors")  # fmt: skip


def inspyrenet(folder):
    from transparent_background.InSPyReNet import InSPyReNet_SwinB

    torch.manual_seed(0)
    network = InSPyReNet_SwinB(depth=64, pretrained=False, base_size=[384, 384], threshold=None)
    folder.mkdir()
    save_file({k: v.contiguous().clone() for k, v in network.state_dict().items()},
              folder / "weights.safetensors")  # fmt: skip


def vgg(folder):
    torch.manual_seed(0)
    folder.mkdir()
    state = {name: value.half() for name, value in vgg16().state_dict().items()}
    save_file(state, folder / "weights.safetensors")


WRITERS = {
    ("depth", "midas"): dpt,
    ("depth", "depth-anything"): depth_anything,
    ("depth", "transformers"): glpn,
    ("foreground", "tracer"): tracer,
    ("foreground", "inspyrenet"): inspyrenet,
    ("shading", "marigold"): marigold,
    ("shading", "retinex"): None,
    ("class", "vgg16"): vgg,
    ("class", "transformers"): classifier,
}
IN_ONE_FILE = {"tracer", "inspyrenet", "vgg16"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Labelers by property and name, each made once."""
    made = {}

    def get(prop, name):
        if (prop, name) not in made:
            weights = None
            if WRITERS[prop, name]:
                folder = tmp_path_factory.mktemp("labelers") / name
                WRITERS[prop, name](folder)
                weights = str(folder / "weights.safetensors" if name in IN_ONE_FILE else folder)
            spec = LabelerSpec(name=name, weights=weights)
            made[prop, name] = spec, load_labeler(prop, spec, CPU)
        return made[prop, name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize(("prop", "name"), WRITERS)
def test_size_range_and_independence_of_the_batch(loaded, pictures, prop, name):
    spec, labeler = loaded(prop, name)
    assert len(check_labeler(prop, spec)) == 16
    found = labeler(pictures)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    if prop == "class":
        assert found.shape == (3, len(labeler.classes))
        assert len(set(labeler.classes)) == len(labeler.classes)
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-4)
    else:
        assert found.shape == (3, 48, 64)
        assert labeler.classes == ()
    if prop == "foreground":
        assert 0 <= found.min() <= found.max() <= 1
    if prop == "shading":
        assert found.min() >= 0
    assert labeler.units
    spread = np.ptp(found) or 1.0
    for alone in (labeler(pictures[1:2])[0], labeler(pictures[[2, 1]])[1]):
        np.testing.assert_allclose(alone, found[1], atol=1e-4 * spread)


# --- what each computes, by hand -----------------------------------------------------------------


def test_midas_is_the_networks_inverse_depth_negated_and_normalised(loaded, pictures):
    spec, labeler = loaded("depth", "midas")
    model = DPTForDepthEstimation.from_pretrained(spec.weights).eval()
    processor = DPTImageProcessor.from_pretrained(spec.weights)
    with torch.no_grad():
        raw = model(**processor(list(pictures), return_tensors="pt")).predicted_depth
        big = torch.nn.functional.interpolate(
            raw[:, None], (48, 64), mode="bicubic", align_corners=False
        )[:, 0]
    np.testing.assert_allclose(labeler(pictures), -(big.numpy() - 15.740597) / 9.281932, atol=1e-4)
    assert "inverse" in labeler.units


def test_the_sign_of_depth_follows_the_models_convention(pictures, tmp_path):
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


def test_a_depth_model_whose_sign_is_not_known_is_refused(tmp_path):
    glpn(tmp_path / "new")
    path = tmp_path / "new" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "marvel"}))
    with pytest.raises(UserError, match=r"labels\.depth.*'marvel'.*take one of dpt"):
        check_labeler("depth", LabelerSpec(name="transformers", weights=str(tmp_path / "new")))


def test_retinex_follows_the_light_and_not_the_paint():
    """A smooth ramp of light over a fine checkerboard of paint: the ramp is what is read."""
    ramp = np.linspace(0.1, 1, 64)[None, :].repeat(64, 0)
    paint = 0.4 + 0.4 * (np.indices((64, 64)).sum(0) % 2)
    linear = ramp * paint
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    image = np.rint(srgb * 255).astype(np.uint8)[..., None].repeat(3, -1)
    found = RetinexLabeler()(image[None])[0]
    assert np.corrcoef(found.ravel(), ramp.ravel())[0, 1] > 0.97
    assert abs(np.corrcoef(found.ravel(), paint.ravel())[0, 1]) < 0.05
    flat = RetinexLabeler()(np.full((1, 16, 24, 3), 255, np.uint8))
    np.testing.assert_allclose(flat, 1, rtol=1e-6)


def test_vgg_uses_torchvisions_own_transforms(loaded, pictures):
    from PIL import Image

    spec, labeler = loaded("class", "vgg16")
    transform = VGG16_Weights.IMAGENET1K_V1.transforms()
    network = vgg16()
    from safetensors.torch import load_file

    network.load_state_dict({k: v.float() for k, v in load_file(spec.weights).items()})
    with torch.no_grad():
        data = torch.stack([transform(Image.fromarray(p)) for p in pictures])
        expected = network.eval()(data).softmax(1).numpy()
    # PIL resizes in 8 bits, tensors in floats: about a level of 255
    np.testing.assert_allclose(labeler(pictures), expected, rtol=0.05)
    assert labeler.classes[951] == "lemon"
    assert labeler.classes[950] == "orange"
    assert len(labeler.classes) == 1000


def test_repeated_class_names_are_told_apart(loaded):
    assert loaded("class", "transformers")[1].classes == ("lemon", "orange", "lemon (2)")


def test_marigold_takes_the_shading_among_its_targets(loaded, tmp_path):
    _, labeler = loaded("shading", "marigold")
    assert labeler.target_index == 1
    marigold(tmp_path / "appearance", ("albedo", "material"))
    with pytest.raises(UserError, match="albedo, material, not shading"):
        load_labeler(
            "shading", LabelerSpec(name="marigold", weights=str(tmp_path / "appearance")), CPU
        )


def test_intrinsics_inverse_shading_is_undone(monkeypatch, pictures):
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
    found = labeler(pictures)
    np.testing.assert_allclose(found, np.stack([shading] * 3), rtol=1e-5, atol=1e-6)
    assert calls[0][0] == ("paper_weights", "gray", "cpu")
    assert calls[0][1] == (48, 64, 3)
    assert calls[0][2] <= 1


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prop", "spec", "words"),
    [
        ("shading", {"name": "intrinsic"}, ["intrinsic is not installed", "compphoto"]),
        ("shading", {"name": "retinex", "weights": "x"}, ["takes no weights"]),
        ("depth", {"name": "midas"}, ["Intel/dpt-large", "hf download Intel/dpt-large"]),
        ("depth", {"name": "depth-anything"}, ["give weights"]),
        ("depth", {"name": "depth-anything", "weights": "/none/such"}, ["no such folder"]),
        ("foreground", {"name": "tracer"}, ["give weights", "tracer_b7"]),
        ("foreground", {"name": "inspyrenet", "weights": "/none.safetensors"}, ["are missing"]),
        ("foreground", {"name": "tabletop", "weights": "/none"}, ["maps.safetensors", "missing"]),
        ("class", {"name": "vgg16", "weights": "/none.safetensors"}, ["vgg16-397923af.pth"]),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(prop, spec, words):
    with pytest.raises(UserError) as caught:
        check_labeler(prop, LabelerSpec(**spec))
    message = str(caught.value)
    assert message.startswith(f"labels.{prop} is '{spec['name']}': ")
    for word in words:
        assert word in message


def test_a_package_that_is_missing_is_said(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    gone = {"carvekit", "transparent_background"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in gone else real(n))
    for name, words in (
        ("tracer", "pip install --no-deps carvekit"),
        ("inspyrenet", r"pip install 'ldmprobe\[inspyrenet\]'"),
    ):
        with pytest.raises(UserError, match=words):
            check_labeler("foreground", LabelerSpec(name=name))


def test_pickled_weights_are_not_opened_but_can_be_converted(tmp_path):
    torch.save({"state_dict": {"a": torch.arange(3.0), "b": torch.ones(2)}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"are a pickle.*labelers\.weights .*w\.pth"):
        check_labeler("foreground", LabelerSpec(name="tracer", weights=str(tmp_path / "w.pth")))
    out = convert(tmp_path / "w.pth")
    assert out == tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="do not fit the network"):
        load_labeler("class", LabelerSpec(name="vgg16", weights=str(out)), CPU)


def test_a_folder_of_pickles_is_refused(tmp_path):
    glpn(tmp_path / "g")
    weights = tmp_path / "g" / "model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="holds no safetensors"):
        check_labeler("depth", LabelerSpec(name="transformers", weights=str(tmp_path / "g")))


def test_the_short_and_the_long_form_of_a_name_are_one():
    short = parse_study({"labels": {"depth": "midas", "class": None}})
    long = parse_study({"labels": {"depth": {"name": "midas"}, "class": None}})
    assert short == long
    assert labelers_of(short)["depth"] == LabelerSpec(name="midas")
    with pytest.raises(UserError, match=r"labels\.depth.*weightz"):
        parse_study({"labels": {"depth": {"name": "midas", "weightz": "x"}}})
