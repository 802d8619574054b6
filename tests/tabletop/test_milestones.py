"""Measurements of a denoiser while it trains."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.labelers.tabletop import ClassLabeler, load_networks, map_labeler
from ldmprobe_core.tabletop import denoiser
from ldmprobe_core.tabletop.denoiser import load_denoiser
from ldmprobe_core.tabletop.measures.milestones import Milestones
from ldmprobe_core.tabletop.tokenizer import new_tokenizer
from ldmprobe_core.tabletop.training import Recipe

CPU = torch.device("cpu")


@pytest.mark.slow
def test_milestones_measure_a_training_continued_from_the_model_folder(tiny):
    folder, data, vae, latents = tiny
    networks = load_networks(MODEL_FOLDER, CPU)
    model = load_denoiser(MODEL_FOLDER)
    start = copy.deepcopy(model.state_dict())
    shipped = load_file(MODEL_FOLDER / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(start[f"unet.{key}"], value.float()) for key, value in shipped.items())
    milestones = Milestones(
        folder / "milestones",
        copy.deepcopy(model),
        vae,
        data,
        latents,
        ClassLabeler(networks["judge"], CPU),
        map_labeler("foreground", networks["maps"], CPU),
        generated=12,
    )
    recipe = Recipe(samples=8, batch=4, learning_rate=1e-4)
    trained = denoiser.train_denoiser(
        data, vae, new_tokenizer(), folder, CPU, recipe, model, milestone=milestones
    )
    milestones(0, {})  # has been measured: is not measured again
    kept = load_file(folder / "milestones" / "00000000.safetensors")
    assert all(torch.equal(kept[key], value.half()) for key, value in start.items())
    assert (folder / "milestones" / "00000000.png").stat().st_size > 10_000
    figures = json.loads((folder / "milestones" / "00000000.json").read_text())
    assert figures["samples"] == 0
    assert figures["accuracy"]["all"] > 0.5
    assert min(figures["frechet"], figures["frechet of renders"]) > 0
    assert figures["edge"] > figures["edge of renders"] > 0
    moved = [
        key for key, value in trained.state_dict().items() if not torch.equal(value, start[key])
    ]
    assert len(moved) > 300
    assert json.loads((folder / "denoiser.json").read_text())["samples"] == 8
