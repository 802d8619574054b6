"""Learning curve of the embedded model: the card's table and its sentence about depth."""

from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from benchmarks.learning_curve import model_folder
from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.tabletop.denoiser import Denoiser
from ldmprobe_core.tabletop.measures.learning_curve import half_way, learning_curve_lines
from ldmprobe_core.tabletop.tokenizer import new_tokenizer


def _row(samples: int, depth: float, **more: object) -> dict:
    score = {"mean": depth, "low": depth - 0.1, "high": depth + 0.1}
    steps = {"3": score, "15": score}
    return {
        "samples": samples,
        "scores": dict.fromkeys(("foreground", "depth", "shading"), steps),
    } | more


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([0.0, 0.4, 0.6, 1.0], 2),
        ([0.0, 0.6, 0.4, 1.0], 3),  # it has to stay above the middle
        ([0.2, 0.6, 0.6], 1),
        ([0.0, float("nan"), 0.9, 1.0], 2),
        ([0.5, 0.9, 0.5], None),
        ([0.5, 0.9, 0.3], None),
        ([0.5, float("nan")], None),
    ],
)
def test_half_way_is_the_first_index_that_keeps_half_of_the_gain(values, index):
    assert half_way(values) == index


def test_learning_curve_lines_name_the_milestone_where_half_of_depth_is_learned():
    rows = [
        _row(0, 0.1),
        _row(1_000, 0.2, accuracy={"all": 0.25}, frechet=4.0, edge=0.8),
        _row(2_000, 0.4, accuracy={"all": 0.5}, frechet=2.0, edge=0.5),
        _row(1_234_000, 0.5, accuracy={"all": 0.75}, frechet=1.0, edge=0.25),
    ]
    text = "\n".join(learning_curve_lines(rows))
    assert "| 1,234,000 | 0.75 | 1.00 | 0.25 | 0.50 [0.40, 0.60] |" in text
    assert "| 0 |  |  |  | 0.10 [0.00, 0.20] |" in text
    assert (
        "from 2,000 samples on (0.40 [0.30, 0.50]), when the judge names 50% of the images" in text
    )
    assert "| renderings |" not in text
    rows[-1] |= {"frechet of renders": 0.25, "edge of renders": 0.125}
    assert "| renderings |  | 0.25 | 0.12 |  |" in "\n".join(learning_curve_lines(rows))
    assert "training does not raise it" in "\n".join(learning_curve_lines(rows[::-1]))
    assert learning_curve_lines([]) == []


@pytest.mark.slow
def test_model_folder_of_a_milestone_has_its_weights(tmp_path):
    weights = {key: value.half() for key, value in Denoiser(new_tokenizer()).state_dict().items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "00000000.safetensors")
    folder = model_folder(tmp_path / "00000000.safetensors", tmp_path / "model")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    assert all(
        (unet[key.removeprefix("unet.")] == value).all()
        for key, value in weights.items()
        if key.startswith("unet.")
    )
    kept = Path("labelers/maps.safetensors")
    assert (folder / kept).read_bytes() == (MODEL_FOLDER / kept).read_bytes()
    assert (
        load_file(folder / "vae/diffusion_pytorch_model.safetensors").keys()
        == load_file(MODEL_FOLDER / "vae/diffusion_pytorch_model.safetensors").keys()
    )
