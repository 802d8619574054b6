"""Shipped weights, loaded as users do, measured on scenes and prompts not used in training."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.labelers import tabletop
from ldmprobe_core.probing.metrics import dice, spearman
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.tabletop.measures import evaluation
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import sample_scene

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
OWN = LabelerSpec(name="tabletop")
UNSEEN = 5_000_000
"""Seeds from here on were never rendered for training."""


@pytest.fixture(scope="module")
def pipeline():
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def scenes():
    """Renderings of 160 unseen scenes, with the scenes."""
    drawn = [sample_scene(UNSEEN + i) for i in range(160)]
    return drawn, [render(scene) for scene in drawn]


@pytest.fixture(scope="module")
def pictures(scenes):
    return np.stack([np.rint(r.rgb * 255).astype(np.uint8) for r in scenes[1]])


def test_model_folder_is_small_and_has_no_pickles():
    files = [path for path in MODEL_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    weights = [path for path in files if path.stat().st_size > 200_000]
    assert all(path.suffix == ".safetensors" for path in weights)
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]


def test_model_card_snippet_runs_as_printed(monkeypatch):
    """No dtype is given: all parts must load in one."""
    card = (MODEL_FOLDER / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    before, _, last = code.rstrip().rpartition("\npipe(")
    assert last.endswith(".images[0]")
    monkeypatch.chdir(MODEL_FOLDER.parents[2])
    names: dict = {}
    exec(before, names)
    parts = [names["pipe"].unet, names["pipe"].vae, names["pipe"].text_encoder]
    assert {part.dtype for part in parts} == {torch.float32}
    image = np.asarray(eval(f"pipe({last}", names))
    assert image.shape == (64, 64, 3)
    assert image.std() > 10


def test_scene_baselines_of_position_are_low(scenes):
    maps = scenes[1]
    found = evaluation.scene_baselines(
        np.stack([m.foreground > 0.5 for m in maps]),
        np.stack([m.depth for m in maps]),
        np.stack([m.shading for m in maps]),
    )
    assert found["dice"] <= 0.40
    assert found["depth"] <= 0.65
    assert found["shading"] <= 0.65


def test_vae_reconstruction_keeps_detail_and_colors(pipeline, scenes, pictures):
    rebuilt = evaluation.reconstruct(pipeline.vae, pictures, CPU)
    error = np.square(pictures / 255.0 - rebuilt / 255.0).mean((1, 2, 3))
    assert (-10 * np.log10(error)).mean() >= 28
    gaps = {}
    for before, after, scene, r in zip(pictures, rebuilt, *scenes, strict=True):
        mask = r.foreground > 0.5
        if mask.sum() >= 20:
            gap = np.abs(before[mask].mean(0) - after[mask].mean(0)).max() / 255
            gaps.setdefault(scene.color, []).append(gap)
    assert len(gaps) == 8
    assert max(np.mean(g) for g in gaps.values()) <= 0.06


def test_labelers_agree_with_exact_maps(pipeline, scenes, pictures):
    drawn, maps = scenes
    masks = tabletop.load_foreground(OWN, CPU)(pictures) > 0.5
    assert dice(masks, np.stack([m.foreground > 0.5 for m in maps])).mean() >= 0.93
    depth = tabletop.load_depth(OWN, CPU)(pictures)
    assert np.nanmean(spearman(depth, np.stack([m.depth for m in maps]))) >= 0.90
    shading = tabletop.load_shading(OWN, CPU)(pictures)
    assert np.nanmean(spearman(shading, np.stack([m.shading for m in maps]))) >= 0.85
    truth = [CATEGORIES.index(scene.category) for scene in drawn]
    classes = tabletop.load_classes(OWN, CPU)
    assert (classes(pictures).argmax(1) == truth).mean() >= 0.90
    rebuilt = evaluation.reconstruct(pipeline.vae, pictures, CPU)
    assert (classes(rebuilt).argmax(1) == truth).mean() >= 0.90


def test_labelers_do_not_depend_on_the_batch(pictures):
    for load in (tabletop.load_foreground, tabletop.load_depth, tabletop.load_classes):
        labeler = load(OWN, CPU)
        together = labeler(pictures[:70])
        for i in (0, 63, 64, 69):
            alone = labeler(pictures[i : i + 1])[0]
            np.testing.assert_allclose(together[i], alone, atol=1e-4 * np.ptp(together))


def test_generated_images_show_the_prompts_category(pipeline):
    """The judge took no part in training the denoiser, nor in any study.

    A model whose accuracy is only 0.80 passes with a probability of 0.03.
    """
    images, pairs = evaluation.generate_balanced(pipeline, 60)
    assert images.shape == (60, 64, 64, 3)
    found = evaluation.class_accuracy(tabletop.load_judge(OWN, CPU), images, pairs)
    assert found["all"] >= 0.90


def test_model_card_lists_the_figures_of_the_weights():
    figures = json.loads((MODEL_FOLDER / "figures.json").read_text())
    card = (MODEL_FOLDER / "README.md").read_text()
    assert f"{figures['generated']['all']:.3f}" in card
    assert f"{figures['vae']['psnr']:.3f}" in card
    assert figures["training"]["denoiser"]["samples"] > 0
