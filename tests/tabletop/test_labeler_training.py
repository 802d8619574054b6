"""Losses of the labelers by hand, and further training of the map network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.labelers.tabletop import load_networks, map_labeler
from ldmprobe_core.probing.metrics import spearman
from ldmprobe_core.tabletop.labeler_training import (
    mirrored,
    normal_loss,
    reconstructions,
    relief_loss,
    train_maps,
)
from ldmprobe_core.tabletop.measures import evaluation
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import sample_scene
from ldmprobe_core.tabletop.training import Recipe

CPU = torch.device("cpu")


def test_relief_loss_ignores_the_objects_mean_depth():
    truth = torch.zeros(1, 4, 4)
    truth[0, :2] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    inside = torch.zeros(1, 4, 4)
    inside[0, :2] = 1
    assert relief_loss(truth + 7 * inside + 3, truth, inside) == pytest.approx(0, abs=1e-5)
    spread = np.std([0.1, 0.2, 0.3, 0.4])
    flat = relief_loss(torch.zeros(1, 4, 4), truth, inside)
    assert float(flat) == pytest.approx(0.1 / spread, rel=1e-5)  # mean |deviation| is 0.1
    assert relief_loss(truth, truth + 1, torch.zeros(1, 4, 4)) == 0


def test_normal_loss_is_one_minus_the_cosine_on_surfaces():
    truth = torch.zeros(1, 3, 1, 4)
    truth[0, 2, 0, :3] = 1  # the last pixel is sky
    vectors = torch.zeros(1, 3, 1, 4)
    vectors[0, :, 0, 0] = torch.tensor([0, 0, 5.0])
    vectors[0, :, 0, 1] = torch.tensor([2.0, 0, 2.0])
    vectors[0, :, 0, 2] = torch.tensor([0, 1.0, 0])
    everywhere = torch.ones(1, 1, 4)
    expected = (0 + 1 - np.sqrt(0.5) + 1) / 3
    assert float(normal_loss(vectors, truth, everywhere)) == pytest.approx(expected, rel=1e-5)
    first = torch.tensor([[[1.0, 0, 0, 1]]])
    assert float(normal_loss(vectors, truth, first)) == pytest.approx(0, abs=1e-6)


def test_mirrored_normals_are_those_of_the_mirrored_scene():
    scene = replace(sample_scene(3), roll=0.0)
    flipped = replace(
        scene,
        category="ball",
        offset=(-scene.offset[0], scene.offset[1]),
        walls=tuple((-azimuth, distance) for azimuth, distance in scene.walls),
    )
    scene = replace(scene, category="ball")
    a, b = (torch.from_numpy(render(s).normal).permute(2, 0, 1)[None] for s in (scene, flipped))
    off = evaluation.degrees_off(
        mirrored(a)[0].permute(1, 2, 0).numpy(), b[0].permute(1, 2, 0).numpy()
    )
    assert np.median(off) < 1
    assert np.mean(off < 5) > 0.98


@pytest.mark.slow
def test_train_maps_continues_from_the_shipped_network(tiny):
    folder, data, vae, latents = tiny
    rebuilt = reconstructions(data, vae, latents, folder, CPU)
    assert rebuilt.shape == (16, 64, 64, 3)
    shipped = load_networks(MODEL_FOLDER, CPU)["maps"]
    recipe = Recipe(samples=48, batch=8, learning_rate=1e-3, warmup=2)
    trained = train_maps(data, rebuilt, folder, CPU, recipe, shipped)
    images = data.rgb[np.array(data.held_out)]
    depth = data.depth[np.array(data.held_out)]
    for network in (shipped, trained):
        found = map_labeler("depth", network, CPU)(images)
        assert np.nanmean(spearman(found, depth)) > 0.7
