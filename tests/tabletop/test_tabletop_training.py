"""Training of the tabletop networks: its measures against closed forms, and that it survives."""

import copy
import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.tabletop import (
    ClassLabeler,
    load_depth,
    load_networks,
    load_normals,
    map_labeler,
)
from ldmprobe_core.labelers.tabletop_networks import MapNetwork
from ldmprobe_core.probing.metrics import spearman
from ldmprobe_core.study.prompt_sets import FLOOR_COLORS, WALL_COLORS
from ldmprobe_core.study.sections import LabelerSpec
from ldmprobe_core.tabletop import denoiser, export, train
from ldmprobe_core.tabletop.autoencoder import load_autoencoder
from ldmprobe_core.tabletop.dataset import Dataset, render_dataset
from ldmprobe_core.tabletop.denoiser import channel_effects, load_denoiser, velocity_loss
from ldmprobe_core.tabletop.labeler_training import (
    mirrored,
    normal_loss,
    reconstructions,
    relief_loss,
    train_maps,
)
from ldmprobe_core.tabletop.measures import evaluation
from ldmprobe_core.tabletop.measures.edges import (
    edge_colors,
    edge_residuals,
    floor_edge,
    line_residual,
)
from ldmprobe_core.tabletop.measures.milestones import Milestones
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import sample_scene, scene_caption
from ldmprobe_core.tabletop.tokenizer import new_tokenizer
from ldmprobe_core.tabletop.training import Recipe

CPU = torch.device("cpu")
BROWN, WHITE = FLOOR_COLORS["brown"], WALL_COLORS["white"]


def drawn(edge, size=64, shades=(0.6, 0.9)):
    """A floor below ``edge`` (x -> y in pixels) and a wall above, each pixel's colour by its area.

    The floor's shade falls to the right, as under a lamp.
    """
    fine = 16
    x, y = (np.arange(size * fine) + 0.5) / fine, (np.arange(size * fine) + 0.5) / fine
    wall = (y[:, None] < edge(x)[None]).astype(float)
    share = wall.reshape(size, fine, size, fine).mean((1, 3))[..., None]
    floor = np.array(BROWN) * np.linspace(*shades, size)[None, :, None]
    picture = share * np.array(WHITE) * 0.8 + (1 - share) * floor
    return np.rint(picture * 255).astype(np.uint8)


def residual_of(image, mask=None):
    hidden = np.zeros(image.shape[:2], bool) if mask is None else mask
    return line_residual(floor_edge(image, hidden, BROWN, WHITE))


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.8])
def test_a_straight_edge_has_no_residual(slope):
    assert residual_of(drawn(lambda x: 30 + slope * (x - 32))) < 0.06


@pytest.mark.parametrize("flip", [1, -1])
def test_a_steep_edge_is_followed_along_the_rows(flip):
    image = drawn(lambda x: 30 + 0.3 * (x - 32)).swapaxes(0, 1)[:, ::flip]
    assert residual_of(image) < 0.06


@pytest.mark.parametrize("amplitude", [0.5, 1.0, 2.0])
def test_a_wavy_edge_has_the_root_mean_square_of_a_sine(amplitude):
    image = drawn(
        lambda x: 30 + 0.2 * x + amplitude * np.sin(2 * np.pi * x / 16) * np.hypot(1, 0.2)
    )
    assert residual_of(image) == pytest.approx(amplitude / np.sqrt(2), rel=0.08)


def test_a_corner_is_two_straight_edges():
    image = drawn(lambda x: 40 - 0.4 * np.abs(x - 30))
    assert residual_of(image) < 0.1


def test_an_object_before_the_edge_changes_nothing():
    image = drawn(lambda x: 30 + 0.2 * (x - 32))
    mask = np.zeros((64, 64), bool)
    mask[20:50, 20:40] = True
    image[mask] = (40, 40, 200)
    points = floor_edge(image, mask, BROWN, WHITE)
    assert not ((points[:, 0] > 20) & (points[:, 0] < 40)).any()
    np.testing.assert_allclose(points[:, 1], 30 + 0.2 * (points[:, 0] - 32), atol=0.2)
    assert residual_of(image, mask) < 0.06


def test_too_few_points_have_no_residual():
    assert np.isnan(line_residual(np.zeros((15, 2))))
    nothing = np.full((64, 64, 3), 255, np.uint8)
    assert np.isnan(residual_of(nothing))


def test_which_captions_have_an_edge_to_measure():
    assert edge_colors("a red cube on a brown floor, white wall") == (BROWN, WHITE)
    assert edge_colors("a red cube on a brown floor") is None
    assert edge_colors("an orange on a gray floor, white wall") is None  # brightness alone


def test_renders_have_straight_edges():
    scenes = [sample_scene(6_000_000 + i) for i in range(60)]
    pictures = [render(scene) for scene in scenes]
    images = np.stack([np.rint(p.rgb * 255).astype(np.uint8) for p in pictures])
    masks = np.stack([p.foreground > 0 for p in pictures])
    residuals, tried = edge_residuals(images, masks, [scene_caption(s) for s in scenes])
    assert len(residuals) > 0.5 * tried > 15
    assert np.median(residuals) < 0.2
    assert residuals.mean() < 0.3


def test_frechet_distance_against_closed_forms():
    draws = np.random.default_rng(0).normal(size=(200_000, 3)) * (1, 2, 3)
    a, b = draws[:100_000], draws[100_000:]
    assert evaluation.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert evaluation.frechet_distance(a, a + np.array([3, 0, 4])) == pytest.approx(25)
    # Between centred normal distributions whose axes agree: squared differences of the deviations.
    assert evaluation.frechet_distance(a, b * (2, 1, 1)) == pytest.approx(1, rel=0.05)
    c, s = np.cos(0.7), np.sin(0.7)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    once, turned = (
        evaluation.frechet_distance(a @ t, b * (2, 1, 1) @ t) for t in (np.eye(3), turn)
    )
    assert once == pytest.approx(turned)


def test_channels_weigh_what_they_do_to_pixels():
    class Decoder:
        def decode(self, latents):
            scaled = latents * torch.tensor([2.0, 1.0, 3.0, 0.0])[None, :, None, None]
            return type("Output", (), {"sample": scaled})

    effects = channel_effects(Decoder(), torch.zeros(4, 4, 16, 16))
    torch.testing.assert_close(effects, torch.tensor([4.0, 1.0, 9.0, 0.0]) / 3.5)


def test_velocity_loss_with_channel_weights_by_hand():
    clean = torch.tensor([1.0, 2.0])[None, :, None, None]
    zero = torch.zeros_like(clean)
    half = torch.tensor([0.5])
    weight = torch.tensor([1.5, 0.5])
    loss = velocity_loss(zero, clean, zero, half, channel_weight=weight)
    assert float(loss) == pytest.approx((1.5 * 0.5 + 0.5 * 2) / 2)
    late = torch.tensor([0.99])
    plain = velocity_loss(zero, clean, zero, late, snr_clip=float("inf"))
    assert float(plain) == pytest.approx(0.01 * 2.5)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from ldmprobe_core.tabletop.training import Recipe, Trainer

folder, stop = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(1)
x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
recipe = Recipe(samples=300, batch=5, learning_rate=1e-2, warmup=3, average=0.9)
model = nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 4, 3, padding=1), nn.Flatten())
model.append(nn.Linear(4, 1)).to(memory_format=torch.channels_last)
trainer = Trainer(folder, "line", model, recipe, torch.device("cpu"))
trainer.CHECKPOINT_EVERY_S, trainer.PROGRESS_EVERY_S = 0.0, 1e9

def loss(index, step):
    if step == stop:
        # Killed in the middle of writing a checkpoint.
        (folder / "line.tmp").write_bytes((folder / "line.safetensors").read_bytes()[:99])
        os.kill(os.getpid(), signal.SIGKILL)
    noise = torch.randn(len(index), 1)
    return (model(x[index]) - x[index].sum(1, keepdim=True) - 0.1 * noise).square().mean()

def milestone(samples, average):
    torch.rand(samples)  # its use of the generator must not matter
    with (folder / "milestones").open("a") as file:
        print(samples, average["1.weight"].sum().item(), file=file)

trainer.fit(50, loss, milestone, milestone_every=100)
print(*torch.cat([value.flatten() for value in model.state_dict().values()]).tolist())
"""


def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path):
    def train(name, stop):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", KILLED, str(folder), str(stop)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode > 0:
            raise AssertionError(done.stderr)
        seen = np.loadtxt(folder / "milestones")
        return done.returncode, np.array(done.stdout.split(), float), seen

    code, whole, milestones = train("whole", -1)
    assert code == 0
    assert milestones[:, 0].tolist() == [0, 100, 200, 300]
    for stop in (23, 41):
        code, _, _ = train("cut", stop)
        assert code == -signal.SIGKILL
    code, resumed, seen = train("cut", -1)
    assert code == 0
    # Up to the last bit of a sum, whose order depends on where the tensors lie in memory.
    np.testing.assert_allclose(resumed, whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen, milestones, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A data set of 40 scenes with its latents by the shipped VAE, and the folder of it all."""
    folder = tmp_path_factory.mktemp("training")
    render_dataset(folder / "scenes", 40, processes=1)
    data = Dataset(folder / "scenes", held_out=24)
    vae = load_autoencoder(MODEL_FOLDER)
    return folder, data, vae, denoiser.latent_dataset(data, vae, folder, CPU)


@pytest.mark.slow
def test_further_training_begins_from_the_model_folder_and_measures_itself(tiny):
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
    kept = load_file(folder / "milestones" / "0000000.safetensors")
    assert all(torch.equal(kept[key], value.half()) for key, value in start.items())
    assert (folder / "milestones" / "0000000.png").stat().st_size > 10_000
    figures = json.loads((folder / "milestones" / "0000000.json").read_text())
    assert figures["samples"] == 0
    assert figures["accuracy"]["all"] > 0.5
    assert min(figures["frechet"], figures["frechet of renders"]) > 0
    assert figures["edge"] > figures["edge of renders"] > 0
    moved = [
        key for key, value in trained.state_dict().items() if not torch.equal(value, start[key])
    ]
    assert len(moved) > 300
    assert json.loads((folder / "denoiser.json").read_text())["samples"] == 8


@pytest.mark.slow
def test_the_command_trains_a_model_folder_further_and_writes_another(tiny, tmp_path, monkeypatch):
    folder = tiny[0]
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    for name in ("scenes", "latents.npy"):
        (work / name).symlink_to(folder / name)
    monkeypatch.setattr(train, "HELD_OUT", 24)
    monkeypatch.setattr(denoiser, "CONTINUED", replace(denoiser.CONTINUED, batch=8))
    monkeypatch.setattr(train, "Milestones", partial(Milestones, generated=12))
    monkeypatch.setattr(export, "GENERATED", 12)
    command = ["train", "--from", str(MODEL_FOLDER), "--work", str(work), "--out", str(out)]
    command += ["--stages", "denoiser", "export", "--denoiser-samples", "32"]
    command += ["--contact-sheet", str(tmp_path / "sheet.png")]
    monkeypatch.setattr(sys, "argv", command)
    train.main()
    assert (work / "milestones" / "0000000.json").is_file()
    assert (tmp_path / "sheet.png").is_file()
    before = json.loads((MODEL_FOLDER / "figures.json").read_text())["training"]
    after = json.loads((out / "figures.json").read_text())["training"]
    assert after["denoiser"]["samples"] == before["denoiser"]["samples"] + 32
    assert after["maps"] == before["maps"]
    for part in ("vae", "labelers"):
        for path in (MODEL_FOLDER / part).glob("*.safetensors"):
            old, new = load_file(path), load_file(out / part / path.name)
            assert all(torch.equal(old[key], value) for key, value in new.items())
    assert "| judge: accuracy on 12 generated images |" in (out / "README.md").read_text()


@pytest.mark.slow
def test_an_exported_pipeline_loads_in_one_dtype_and_as_it_was(tmp_path):
    model = load_denoiser(MODEL_FOLDER)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export.save_pipeline(tmp_path, load_autoencoder(MODEL_FOLDER), model, new_tokenizer())
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert {p.dtype for p in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {
        torch.float32
    }
    again = load_denoiser(tmp_path).state_dict()
    assert all(torch.equal(again[key], value) for key, value in before.items())
    shipped = {path.relative_to(MODEL_FOLDER) for path in Path(MODEL_FOLDER).rglob("*.json")}
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.json")}
    assert written == shipped - {Path("figures.json")}


def test_relief_counts_depth_less_the_objects_mean():
    truth = torch.zeros(1, 4, 4)
    truth[0, :2] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    inside = torch.zeros(1, 4, 4)
    inside[0, :2] = 1
    assert relief_loss(truth + 7 * inside + 3, truth, inside) == pytest.approx(0, abs=1e-5)
    spread = np.std([0.1, 0.2, 0.3, 0.4])
    flat = relief_loss(torch.zeros(1, 4, 4), truth, inside)
    assert float(flat) == pytest.approx(0.1 / spread, rel=1e-5)  # mean |deviation| is 0.1
    assert relief_loss(truth, truth + 1, torch.zeros(1, 4, 4)) == 0


def test_normal_loss_is_one_minus_the_cosine_where_there_is_a_surface():
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


def test_normals_of_a_mirror_image_are_those_of_the_mirrored_scene():
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


def test_agreement_inside_objects_and_of_directions():
    truth = np.arange(64.0).reshape(1, 8, 8)
    inside = np.zeros((1, 8, 8), bool)
    inside[0, :5, :5] = True
    outside_wrong = np.where(inside, truth * 2 + 5, -truth)
    assert evaluation.correlation_inside(outside_wrong, truth, inside) == pytest.approx(1)
    assert evaluation.correlation_inside(-truth, truth, inside) == pytest.approx(-1)
    a = np.array([[[[1, 0, 0], [2, 2, 0], [0, 0, 0]]]])
    b = np.array([[[[3, 0, 0], [0, 1, 0], [1, 0, 0]]]])
    np.testing.assert_allclose(evaluation.degrees_off(a, b), [[[0, 45, np.nan]]], atol=1e-6)


def test_a_map_network_with_normals_keeps_the_maps_of_one_without(tmp_path):
    torch.manual_seed(0)
    old, new = MapNetwork(outputs=3).eval(), MapNetwork().eval()
    new.load_fewer(old.state_dict())
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        given = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        torch.testing.assert_close(new(given)[:, :3], old(given))
    again = MapNetwork()
    again.load_fewer(new.state_dict())
    assert all(torch.equal(a, new.state_dict()[key]) for key, a in again.state_dict().items())
    for name, network in (("old", old), ("new", new)):
        export.save_labelers(tmp_path / name, {"maps": network})
    found = {}
    for name in ("old", "new"):
        spec = LabelerSpec(name="tabletop", weights=str(tmp_path / name))
        found[name] = load_depth(spec, CPU)(images)
    np.testing.assert_array_equal(found["old"], found["new"])
    normals = load_normals(LabelerSpec(name="tabletop", weights=str(tmp_path / "new")), CPU)(images)
    assert normals.shape == (2, 64, 64, 3)
    assert normals.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    with pytest.raises(UserError, match="tell no normals"):
        load_normals(LabelerSpec(name="tabletop", weights=str(tmp_path / "old")), CPU)


@pytest.mark.slow
def test_the_map_network_trains_further_from_the_shipped_one(tiny):
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


def test_the_card_tells_of_normals_where_there_are_any(tiny):
    figures = json.loads((MODEL_FOLDER / "figures.json").read_text())
    figures["labelers"]["depth inside objects"] = 0.876
    without = export.model_card(figures, tiny[1])
    figures["labelers"]["normal, degrees off"] = 11.5
    card = export.model_card(figures, tiny[1])
    assert "inside objects | 0.876 | >= 0.85 |" in without
    assert "degrees" not in without
    assert "degrees | 11.500 | <= 12 |" in card


def test_records_of_two_trainings_add_up():
    before = {"maps": {"samples": 5, "seconds": 1}, "denoiser": {"samples": 10, "seconds": 3}}
    after = {"denoiser": {"samples": 7, "seconds": 2, "cpu_seconds": 4}}
    assert export.add_records(before, after) == {
        "maps": {"samples": 5, "seconds": 1},
        "denoiser": {"samples": 17, "seconds": 5, "cpu_seconds": 4},
    }
