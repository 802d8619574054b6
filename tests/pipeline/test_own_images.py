"""Studies of source images: exact maps, noised latents, and mistakes of folders."""

import numpy as np
import OpenEXR
import pytest
from PIL import Image
from run_helpers import carry_out, generated

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.readers.image_folder import read_image, read_map
from ldmprobe_core.study.samples import make_samples, resolve_inputs
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import sample_scene


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """18 rendered scenes with their exact maps, each property in another format."""
    folder = tmp_path_factory.mktemp("scenes")
    maps = []
    for i in range(18):
        scene = render(sample_scene(9_000_000 + i))
        rgb = np.rint(scene.rgb * 255).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"scene-{i:02d}.png")
        np.save(folder / f"scene-{i:02d}.depth.npy", scene.depth)
        mask = ((scene.foreground > 0.5) * 255).astype(np.uint8)
        Image.fromarray(mask).save(folder / f"scene-{i:02d}.foreground.png")
        channels = {"Y": np.asarray(scene.shading, np.float32)}
        OpenEXR.File({}, channels).write(str(folder / f"scene-{i:02d}.shading.exr"))
        maps.append(scene)
    return folder, maps


def own_images_study(folder, **parts):
    content = {
        "name": "own",
        "source": "images",
        "images": {"folder": str(folder)},
        "sampling": {"steps": 3, "batch": 6, "threads": 1, "scheduler": "ddim"},
        "capture": {"layers": ["up_blocks.2.*.attn1"]},
        "controls": {"permuted_weights": False, "shuffled_labels": False},
        "bootstrap": {"resamples": 200},
    }
    return parse_study({**content, **parts})


@pytest.mark.slow
def test_own_images_probed_against_exact_maps_and_against_labels(scenes, tmp_path):
    folder, maps = scenes
    exact = {"foreground": "maps", "depth": "maps", "shading": "maps", "class": None}
    run = carry_out(own_images_study(folder, labels=exact), str(tmp_path))
    n = len(maps)
    np.testing.assert_array_equal(
        run.read("labels", "foreground"), np.stack([m.foreground > 0.5 for m in maps])
    )
    np.testing.assert_allclose(
        run.read("labels", "depth"), np.stack([m.depth for m in maps]), rtol=1e-6
    )
    np.testing.assert_allclose(
        run.read("labels", "shading"), np.stack([m.shading for m in maps]), rtol=1e-6
    )
    pictures = np.stack([np.rint(m.rgb * 255).astype(np.uint8) for m in maps])
    np.testing.assert_array_equal(run.read("images", "image"), pictures)
    # After the last step latents are the picture's own, decoded: close to it; before that, noised.
    trajectory = run.read("images", "trajectory").astype(float)
    error = np.abs(trajectory - pictures[:, None]).mean((0, 2, 3, 4))
    assert error[-1] < 5
    assert error[0] > 2 * error[2]
    assert error[1] > error[2]
    assert np.isnan(run.read("labels_trajectory", "depth")).all()
    summary = build_report(run, {})
    assert summary.samples["total"] == n
    assert summary.samples["test_groups"] == summary.samples["test"]  # each picture by itself
    assert summary.properties["depth"].best.low < summary.properties["depth"].best.high
    assert summary.properties["foreground"].best.mean > 0.5
    assert summary.labelers is None
    assert summary.properties["depth"].emergence.decoded.onset.step is None

    labeled = carry_out(own_images_study(folder), str(tmp_path))
    np.testing.assert_array_equal(labeled.read("exact_maps", "depth"), run.read("labels", "depth"))
    error = build_report(labeled, {}).labelers
    assert set(error) == {"foreground", "depth", "shading"}
    assert error["foreground"].mean > 0.9
    assert error["depth"].mean > 0.8
    same = [g.read(f"activations/{g.layers[0]}", "activation") for g in (run, labeled)]
    np.testing.assert_array_equal(*same)


def test_own_images_are_noised_as_the_schedule_says(scenes, tmp_path):
    """The denoiser's input at each step, by hand: alpha-bar, the VAE's mode, a seeded normal."""
    import torch

    from ldmprobe_core.models import loading
    from ldmprobe_core.models.architectures.registry import detect_architecture
    from ldmprobe_core.models.files import weights
    from ldmprobe_core.models.sampling import PipelineSampler

    study = resolve_inputs(own_images_study(scenes[0]))
    architecture = detect_architecture(weights.model_folder(study.model))
    generator = PipelineSampler(
        loading.load_pipeline(study, torch.device("cpu")), architecture, study
    )
    samples = make_samples(study)[:2]
    pictures = np.stack([read_image(scenes[0] / s.source_image, (64, 64)) for s in samples])
    seen = []
    generator.denoiser.register_forward_pre_hook(lambda m, args: seen.append((args[0], args[1])))
    generated(generator, samples, pictures)
    vae = generator.pipeline.vae
    with torch.no_grad():
        data = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
        clean = vae.encode(data).latent_dist.mode() * vae.config.scaling_factor
    noise = torch.stack([
        torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(s.seed))
        for s in samples
    ])  # fmt: skip
    config = architecture.scheduler
    betas = torch.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
    alpha_bar = (1 - betas).cumprod(0)
    assert len(seen) == 3
    for latents, t in seen:
        a = alpha_bar[int(t)]
        torch.testing.assert_close(latents, a.sqrt() * clean + (1 - a).sqrt() * noise)


@pytest.mark.slow
def test_own_images_in_half_precision(scenes):
    study = resolve_inputs(own_images_study(scenes[0], model={"dtype": "bfloat16"}))
    import torch

    from ldmprobe_core.models import loading
    from ldmprobe_core.models.architectures.registry import detect_architecture
    from ldmprobe_core.models.files import weights
    from ldmprobe_core.models.sampling import PipelineSampler

    architecture = detect_architecture(weights.model_folder(study.model))
    generator = PipelineSampler(
        loading.load_pipeline(study, torch.device("cpu")), architecture, study
    )
    samples = make_samples(study)[:2]
    pictures = np.stack([read_image(scenes[0] / s.source_image, (64, 64)) for s in samples])
    made = generated(generator, samples, pictures)
    assert all(np.isfinite(v).all() for v in made.activations.values.values())


def test_mistakes_of_own_images_and_maps(tmp_path, scenes):
    def study(folder, **parts):
        return own_images_study(folder, **parts)

    with pytest.raises(UserError, match="there is no such folder"):
        resolve_inputs(study(tmp_path / "none"))
    with pytest.raises(UserError, match="holds 0 images"):
        resolve_inputs(study(tmp_path))
    rgb = Image.new("RGB", (8, 8))
    for i in range(3):
        rgb.save(tmp_path / f"{i}.png")
    np.save(tmp_path / "0.depth.npy", np.ones((8, 8)))
    with pytest.raises(UserError, match=r"1\.png has no depth map beside it"):
        resolve_inputs(study(tmp_path))
    (tmp_path / "0.depth.npy").unlink()
    with pytest.raises(UserError, match=r"labels\.depth is 'maps'.*no depth maps"):
        plan_study(study(tmp_path, labels={"depth": "maps"}))
    with pytest.raises(UserError, match=r"labels\.depth is 'maps'.*source must be images"):
        plan_study(parse_study({"labels": {"depth": "maps"}}))
    with pytest.raises(UserError, match="class is 'maps'"):
        parse_study({"labels": {"class": "maps"}})
    with pytest.raises(UserError, match="source is images, and images is missing"):
        parse_study({"source": "images"})
    with pytest.raises(UserError, match="source is prompts, and images is given"):
        parse_study({"images": {"folder": "x"}})
    (tmp_path / "1.png").write_text("no picture")
    with pytest.raises(UserError, match=r"1\.png: not a complete image"):
        read_image(tmp_path / "1.png", (8, 8))
    for name, values, words in (
        ("bad.npy", np.full((4, 4), np.nan), "not finite"),
        ("deep.npy", np.ones((2, 4, 4, 3)), "a map has height and width"),
        ("neg.npy", -np.ones((4, 4)), "at least 0"),
    ):
        np.save(tmp_path / name, values)
        with pytest.raises(UserError, match=words):
            read_map(tmp_path / name, "shading", (4, 4))
    numbers = np.zeros((4, 4), np.uint8)
    numbers[1:3] = 2
    Image.fromarray(numbers).save(tmp_path / "numbers.png")
    with pytest.raises(UserError, match=r"not 0 to 2\. Fix: convert a map of object numbers"):
        read_map(tmp_path / "numbers.png", "foreground", (4, 4))
    for name, data in (("cut.exr", b"v/1\x01"), ("empty.npy", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="not a map"):
            read_map(tmp_path / name, "depth", (4, 4))
    rgb.save(tmp_path / "square.png")
    np.save(tmp_path / "wide.npy", np.ones((4, 8)))
    with pytest.raises(UserError, match=r"wide\.npy: it is 4 x 8, and its source image 8 x 8"):
        read_map(tmp_path / "wide.npy", "depth", (4, 4), tmp_path / "square.png")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="not a map"):
        read_map(tmp_path / "objects.npy", "depth", (4, 4))
    assert resolve_inputs(study(scenes[0])).images.samples == 18
