"""Studies of source images: exact maps, noised latents, and mistakes of folders."""

import hashlib
import json

import numpy as np
import OpenEXR
import pytest
from exact_scores import assert_exact_scores_by_hand
from PIL import Image
from run_helpers import carry_out, generated
from scipy import stats
from sklearn.linear_model import Ridge

from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.analysis.report.text import headline
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.pipeline.prepare import notes_on_new_run, prepare_run, run_in
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.readers.image_folder import read_image, read_map
from ldmprobe_core.study.samples import make_samples, resolve_inputs
from ldmprobe_core.study.schema import LAYOUT_VERSION
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
    for prop in ("depth", "shading"):
        expected = np.stack([getattr(m, prop) for m in maps])
        np.testing.assert_allclose(run.read("labels", prop), expected, rtol=1e-6)
    pictures = np.stack([np.rint(m.rgb * 255).astype(np.uint8) for m in maps])
    np.testing.assert_array_equal(run.read("images", "image"), pictures)
    # After the last step latents are the picture's own, decoded: close to it; before that, noised.
    trajectory = run.read("step_images", "trajectory").astype(float)
    error = np.abs(trajectory - pictures[:, None]).mean((0, 2, 3, 4))
    assert error[-1] < 5
    assert error[0] > 2 * error[2]
    assert error[1] > error[2]
    assert np.isnan(run.read("labels_trajectory", "depth")).all()
    summary = build_report(run, {})
    page = run.location.read_text("report/index.html")
    assert "there is no labeler to compare them with" in page
    assert "labeler" not in run.location.read_text("report/depth-curves.svg")
    assert summary.samples["total"] == n
    assert summary.samples["test_groups"] == summary.samples["test"]  # each picture by itself
    depth = summary.properties["depth"].best.score
    assert depth.low < depth.high
    assert summary.properties["foreground"].best.score.mean > 0.5
    assert summary.labelers is None
    for result in summary.properties.values():
        assert result.exact.labeler is None
        assert result.exact.best.mean == pytest.approx(result.best.score.mean, abs=1e-5)
    assert "labels are exact" in page
    assert summary.properties["depth"].emergence.decoded.undefined_because == "no_labeler"

    labeled = carry_out(own_images_study(folder), str(tmp_path))
    np.testing.assert_array_equal(labeled.read("exact_maps", "depth"), run.read("labels", "depth"))
    summary = build_report(labeled, {})
    assert_exact_scores_by_hand(labeled, summary, maps)
    error = summary.labelers
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
    from ldmprobe_core.models.files.model_folder import model_folder
    from ldmprobe_core.models.sampling import PipelineSampler

    study = resolve_inputs(own_images_study(scenes[0]))
    architecture = detect_architecture(model_folder(study.model))
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
    from ldmprobe_core.models.files.model_folder import model_folder
    from ldmprobe_core.models.sampling import PipelineSampler

    architecture = detect_architecture(model_folder(study.model))
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
    with pytest.raises(UserError, match=r"1\.png has no depth map, but"):
        resolve_inputs(study(tmp_path))
    (tmp_path / "0.depth.npy").unlink()
    with pytest.raises(UserError, match=r"labels\.depth is 'maps'.*no depth maps"):
        plan_study(study(tmp_path, labels={"depth": "maps"}))
    with pytest.raises(UserError, match=r"labels\.depth is 'maps'.*set source to images"):
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
        ("bad.npy", np.full((4, 4), np.nan), "all are NaN"),
        ("deep.npy", np.ones((2, 4, 4, 3)), "a map has height and width"),
        ("neg.npy", -np.ones((4, 4)), "shading is below 0"),
    ):
        np.save(tmp_path / name, values)
        with pytest.raises(UserError, match=words):
            read_map(tmp_path / name, "shading", (4, 4))
    numbers = np.zeros((4, 4), np.uint8)
    numbers[1:3] = 2
    numbers[3] = 1
    Image.fromarray(numbers).save(tmp_path / "numbers.png")
    with pytest.raises(UserError, match=r"this one has 0, 1, 2\. Fix: convert a map of object"):
        read_map(tmp_path / "numbers.png", "foreground", (4, 4))
    for name, data in (("cut.exr", b"v/1\x01"), ("empty.npy", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="not a map"):
            read_map(tmp_path / name, "depth", (4, 4))
    rgb.save(tmp_path / "square.png")
    np.save(tmp_path / "wide.npy", np.ones((4, 8)))
    with pytest.raises(UserError, match=r"wide\.npy: the map has 4 x 8 .* source image 8 x 8"):
        read_map(tmp_path / "wide.npy", "depth", (4, 4), tmp_path / "square.png")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="not a map"):
        read_map(tmp_path / "objects.npy", "depth", (4, 4))
    assert resolve_inputs(study(scenes[0])).images.samples == 18


@pytest.fixture
def measured_in_part(tmp_path, tiny_study):
    """Study of 12 noise images, 16-bit depth maps with zeros, and masks with unknown outlines."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(12):
        stem = str(folder / f"{i:02d}")
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(f"{stem}.png")
        depth = rng.integers(1000, 9000, (16, 16)).astype(np.uint16)
        depth[rng.random((16, 16)) < 0.3] = 0
        depth[:4, :4] = 0
        Image.fromarray(depth).save(f"{stem}.depth.png")
        mask = rng.choice(np.array([0, 15, 255], np.uint8), (16, 16))
        Image.fromarray(mask).save(f"{stem}.foreground.png")

    def make(**parts):
        return tiny_study(
            **{
                "source": "images",
                "prompts": {},
                "images": {"folder": str(folder), "missing": {"depth": 0, "foreground": 255}},
                "labels": {"foreground": "maps", "depth": "maps", "shading": None, "class": None},
                "sampling": {"scheduler": "ddim", "guidance": 1.0},
                **parts,
            }
        )

    return folder, make


def test_pixels_not_measured_are_left_out_of_fits_and_scores_of_a_run(measured_in_part, tmp_path):
    folder, make = measured_in_part
    study = make(controls={"shuffled_labels": False, "permuted_weights": False})
    depth = np.stack([np.asarray(Image.open(folder / f"{i:02d}.depth.png")) for i in range(12)])
    masks = np.stack(
        [np.asarray(Image.open(folder / f"{i:02d}.foreground.png")) for i in range(12)]
    )
    share = (depth == 0).mean()
    plan = plan_study(study)
    assert f"{share:.1%} of the pixels of the depth maps are not measured" in " ".join(plan.notes)
    run = carry_out(study, str(tmp_path / "store"))
    expected = np.where(depth == 0, np.nan, depth.astype(np.float32))
    np.testing.assert_array_equal(run.read("labels", "depth"), expected)

    record = build_report(run, {}).properties
    assert record["depth"].missing == pytest.approx(share)
    assert record["foreground"].missing == pytest.approx((masks == 255).mean())
    assert record["depth"].undefined.best == 0
    page = run.location.read_text("report/index.html")
    assert f"{share * 100:.1f}% of the pixels of its labels are not measured" in page
    assert "not measured" in headline(load_summary(run))[0]

    # One cell again, from the stored activations, by scipy and scikit-learn
    layer = run.layers[0]
    activations = run.read(f"activations/{layer}", "activation", step=2).astype(np.float64)
    grow = 16 // activations.shape[1]
    pixels = activations.repeat(grow, 1).repeat(grow, 2)
    split = np.array([sample.split for sample in run.samples])
    known = depth > 0
    train = known & (split == "train")[:, None, None]
    probes = run.open(f"probes/{layer}").sel(property="depth", kind="ridge", step=3)
    term = probes.position.values.repeat(grow, 0).repeat(grow, 1)
    x, y = pixels[train], (expected - term)[train]
    alpha = float(probes.penalty) * x.var(0).mean() * len(x)
    fit = Ridge(alpha=alpha, solver="cholesky").fit(x, y)
    scores = run.open("scores/depth").score.sel(
        condition="probe", kind="ridge", metric="spearman", step=3, layer=layer
    )
    for i, score in zip(scores.sample.values, scores.values, strict=True):
        predicted = fit.predict(pixels[i].reshape(-1, pixels.shape[-1])).reshape(16, 16)
        predicted += term
        own = stats.spearmanr(predicted[known[i]], expected[i][known[i]]).statistic
        assert score == pytest.approx(own, abs=0.02)


@pytest.mark.parametrize("keep", ["statistics", "both"])
def test_pixels_not_measured_are_refused_with_sums(measured_in_part, keep):
    _, make = measured_in_part
    parts = {"capture": {"keep": keep}, "probes": {"kinds": ["ridge"]}}
    words = rf"capture\.keep: {keep} needs .*% of the pixels of the foreground maps have no"
    with pytest.raises(UserError, match=words):
        plan_study(make(**parts))
    labeled = {"foreground": "tabletop", "depth": "tabletop", "shading": None, "class": None}
    assert plan_study(make(**parts, labels=labeled)).notes  # maps are compared with, not fitted to


def test_study_of_missing_values_has_its_own_hash_and_names_properties(measured_in_part):
    _, make = measured_in_part
    folder = {"folder": make().images.folder, "missing": {}}
    assert make().hash != make(images=folder).hash
    parts = make(images=folder)
    content = parts.model_dump(
        mode="json",
        by_alias=True,
        exclude={
            "execution": True,
            "prompts": {"files"},
            "images": {"folder", "missing"},
            "model": {"config"},
        },
    )
    text = json.dumps([LAYOUT_VERSION, content], sort_keys=True)
    assert parts.hash == hashlib.sha256(text.encode()).hexdigest()[:16]  # as without the keys
    with pytest.raises(
        UserError, match=r"images\.missing: mass is not a property\. Fix: use one of fore"
    ):
        make(images={"folder": "x", "missing": {"mass": 0}})
    with pytest.raises(UserError, match=r"images\.missing: 0 is not a mapping\. Fix: "):
        make(images={"folder": "x", "missing": 0})
    with pytest.raises(UserError, match=r"images\.missing\.depth is nan"):
        make(images={"folder": "x", "missing": {"depth": float("nan")}})


def _as_jpeg(path):
    Image.open(path).save(path, "JPEG")
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(_as_jpeg(path)[:-40]),
        lambda path: path.write_bytes(path.read_bytes()[:200] + bytes(path.stat().st_size - 200)),
        lambda path: path.write_bytes(b""),
        lambda path: Image.new("RGB", (16, 16)).save(path),
        lambda path: path.write_bytes(path.with_name("00.png").read_bytes()),
    ],
    ids=["cut", "cut JPEG", "zeros", "empty", "one colour", "twice"],
)
def test_plan_names_all_broken_images_and_no_run_is_created(measured_in_part, tmp_path, damage):
    """A user removes broken images before a run exists, so that no run has to begin again."""
    folder, make = measured_in_part
    for name in ("03.png", "08.png"):
        damage(folder / name)
    for check in (plan_study, lambda study: prepare_run(study, str(tmp_path / "store"))):
        with pytest.raises(UserError, match=r"03\.png: .*Other images with problems: 08\.png"):
            check(make())
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("changed", ["07.png", "07.depth.png"])
def test_batch_of_files_that_changed_is_refused_and_resumes_when_they_are_back(
    measured_in_part, tmp_path, changed
):
    folder, make = measured_in_part
    run = prepare_run(make(), str(tmp_path / "store"))
    generate_batch(run.url, 0)
    before = (folder / changed).read_bytes()
    Image.effect_noise((16, 16), 90).save(folder / changed)
    with pytest.raises(UserError, match=r"07\.png: this image or a map of it has changed since"):
        generate_batch(run.url, 1)
    (folder / changed).unlink()
    with pytest.raises(UserError, match=r"07(\.depth)?\.png: (cannot be read|this image or a map)"):
        generate_batch(run.url, 1)
    assert [run.progress.is_done("generated", i) for i in range(3)] == [True, False, False]
    (folder / changed).write_bytes(before)
    assert prepare_run(make(), str(tmp_path / "store")).url == run.url
    assert generate_batch(run.url, 0)["samples"] == 0
    assert generate_batch(run.url, 1)["samples"] == 4


def test_new_run_of_fewer_images_is_explained(measured_in_part, tmp_path):
    folder, make = measured_in_part
    store = str(tmp_path / "store")
    first = prepare_run(make(), store)
    (tmp_path / "store" / "tiny-notes").mkdir()
    plan = plan_study(make())
    assert notes_on_new_run(plan, run_in(store, plan.study)) == ()
    for name in ("03.png", "03.depth.png", "03.foreground.png"):
        (folder / name).unlink()
    Image.effect_noise((16, 16), 90).save(folder / "05.png")
    plan = plan_study(make())
    (note,) = notes_on_new_run(plan, run_in(store, plan.study))
    assert first.url in note
    assert "(removed: 03.png; changed: 05.png)" in note
    other = plan_study(make(sampling={"scheduler": "ddim", "guidance": 1.0, "steps": 4}))
    assert notes_on_new_run(other, run_in(store, other.study)) == ()
