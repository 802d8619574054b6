"""Prompt files and pictures of one's own: what is read, and mistakes told with their place."""

import numpy as np
import OpenEXR
import pytest
from PIL import Image
from run_helpers import carry_out, generated

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.generate import _read_images
from ldmprobe_core.pipeline.plan import plan_study
from ldmprobe_core.study.image_folder import list_images, read_image, read_map
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.prompt_files import read_rows
from ldmprobe_core.study.samples import make_samples, resolve_inputs
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import sample_scene


def samples_of(files, **parts):
    study = resolve_inputs(parse_study({"prompts": {"files": files, **parts}}))
    return make_samples(study)


def test_our_own_columns(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "seed,prompt,split,class\n"
        '7,"a lemon, on a table",train,lemon\n'
        "8,an orange,validation,orange\n"
        "9,a red car,test,\n"
        '10,"a ""quoted"" cup",train,cup\n'
        "\n"
        '11,"two\nlines",test,x\n'
    )
    found = samples_of(str(path))
    assert [(s.prompt, s.seed, s.split, s.category) for s in found] == [
        ("a lemon, on a table", 7, "train", "lemon"),
        ("an orange", 8, "validation", "orange"),
        ("a red car", 9, "test", None),
        ('a "quoted" cup', 10, "train", "cup"),
        ("two\nlines", 11, "test", "x"),
    ]


def test_the_papers_files(tmp_path):
    """Its column names, ISO-8859-1, several quotes in a row, train and test apart."""
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    rows = ['0,"""Caf\xe9"" by night",11', '0,"""Caf\xe9"" by night",12', "1,A boat,13",
            "2,A dog,14", "3,A bridge,15"]  # fmt: skip
    train.write_bytes(("prompt_inds,prompts,seeds\r\n" + "\r\n".join(rows)).encode("iso-8859-1"))
    test.write_bytes(b'prompt_inds,prompts,seeds\r\n4,"A ""big"" """"cat""""",21\r\n5,A cow,22\r\n')
    found = samples_of({"train": str(train), "test": str(test)})
    assert [s.prompt for s in found[:2]] == ['"Caf\xe9" by night'] * 2
    assert found[5].prompt == 'A "big" ""cat""'
    assert [s.split for s in found[5:]] == ["test", "test"]
    assert {s.split for s in found[:5]} == {"train", "validation"}
    assert found[0].split == found[1].split  # one prompt, one split
    assert [s.seed for s in found] == [11, 12, 13, 14, 15, 21, 22]


def test_a_file_without_splits_is_dealt_out(tmp_path):
    path = tmp_path / "all.csv"
    path.write_text("\ufeffprompt,seed\n" + "".join(f"p{i},{i}\n" for i in range(20)), "utf-8")
    found = samples_of(str(path))
    counts = {name: sum(s.split == name for s in found) for name in ("train", "validation", "test")}
    assert counts == {"train": 9, "validation": 3, "test": 8}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt\na\n", ["line 1", "no column 'seed'", "prompt"]),
        ("text,seed\na,1\n", ["line 1", "no column 'prompt'"]),
        ("prompt,seed,colour\na,1,red\n", ["line 1", "'colour'"]),
        ("prompt,seed,seed\na,1,2\n", ["line 1", "twice"]),
        ("prompt,seed\na,1\n  ,2\n", ["line 3", "prompt is empty"]),
        ("prompt,seed\na,1\nb,two\n", ["line 3", "'two'"]),
        ("prompt,seed\na,1\nb,1.5\n", ["line 3", "'1.5'"]),
        ("prompt,seed\na,1\nb,-1\n", ["line 3", "'-1'"]),
        ("prompt,seed\na,1\nb,\n", ["line 3", "seed is ''"]),
        ("prompt,seed\na,1\nb,99999999999999999999\n", ["line 3", "999"]),
        ('prompt,seed\n"a\nb",1\na,2\n"a\nb",1\n', ["line 5", "line 2", "already"]),
        ("prompt,seed,split\na,1,train\na,2,test\n", ["line 3", "test", "line 2", "train"]),
        ("prompt,seed,split\na,1,dev\n", ["line 2", "'dev'"]),
        ("prompt,seed\na, with a comma,1\n", ["line 2"]),
        ("prompt,seed\n", ["no rows"]),
        ("", ["no column 'prompt'"]),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        samples_of(str(path))
    message = str(caught.value)
    assert "bad.csv" in message
    for word in words:
        assert word in message


def test_mistakes_of_files_together(tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("prompt,seed\na,1\nb,2\nc,3\n")
    test.write_text("prompt,seed\nd,1\nb,3\n")
    with pytest.raises(UserError, match=r"test\.csv, line 3.*'b'.*train\.csv, line 3"):
        samples_of({"train": str(train), "test": str(test)})
    test.write_text("prompt,seed,split\nd,1,test\n")
    with pytest.raises(UserError, match="a column split in a file that is the test split"):
        samples_of({"train": str(train), "test": str(test)})
    with pytest.raises(UserError, match="give one file, or train and test"):
        parse_study({"prompts": {"files": {"train": "x"}}})
    with pytest.raises(UserError, match="items and files"):
        parse_study({"prompts": {"files": "x", "items": ["a"]}})
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        samples_of(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match=r"samples is 7.*3 rows"):
        samples_of(str(train), samples=7)


def test_the_hash_is_of_the_files_contents_not_their_place(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    for path in (one, two):
        path.write_text("prompt,seed\na,1\nb,2\nc,3\n")
    first, second = (
        resolve_inputs(parse_study({"prompts": {"files": str(p)}})) for p in (one, two)
    )
    assert first.hash == second.hash
    assert resolve_inputs(first) == first
    one.write_text("prompt,seed\na,1\nb,2\nc,4\n")
    with pytest.raises(UserError, match=r"prompts\.files has changed"):
        resolve_inputs(first)
    assert resolve_inputs(parse_study({"prompts": {"files": str(one)}})).hash != second.hash
    assert read_rows({"all": str(one)})[2].seed == 4


# --- pictures ------------------------------------------------------------------------------------


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


def pictures_study(folder, **parts):
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
def test_probes_against_exact_maps_and_against_labels(scenes, tmp_path):
    folder, maps = scenes
    exact = {"foreground": "maps", "depth": "maps", "shading": "maps", "class": None}
    run = carry_out(pictures_study(folder, labels=exact), str(tmp_path))
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

    labeled = carry_out(pictures_study(folder), str(tmp_path))
    np.testing.assert_array_equal(labeled.read("exact_maps", "depth"), run.read("labels", "depth"))
    error = build_report(labeled, {}).labelers
    assert set(error) == {"foreground", "depth", "shading"}
    assert error["foreground"].mean > 0.9
    assert error["depth"].mean > 0.8
    same = [g.read(f"activations/{g.layers[0]}", "activation") for g in (run, labeled)]
    np.testing.assert_array_equal(*same)


def test_noise_and_latents_of_a_picture_are_what_the_schedule_says(scenes, tmp_path):
    """The denoiser's input at each step, by hand: alpha-bar, the VAE's mode, a seeded normal."""
    import torch

    from ldmprobe_core.models import loading, weights
    from ldmprobe_core.models.architectures.registry import detect_architecture
    from ldmprobe_core.models.sampling import PipelineSampler

    study = resolve_inputs(pictures_study(scenes[0]))
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


def test_a_picture_and_its_maps_are_cut_alike(tmp_path):
    """40 x 80 to 16 x 16: the middle 40 x 40, whatever the format."""
    y, x = np.mgrid[0:40, 0:80].astype(np.float32)
    Image.fromarray(np.stack([y, x, x], -1).astype(np.uint8)).save(tmp_path / "p.png")
    np.save(tmp_path / "p.depth.npy", x)
    picture = read_image(tmp_path / "p.png", (16, 16))
    depth = read_map(tmp_path / "p.depth.npy", "depth", (16, 16))
    expected = 20 + (np.arange(16) + 0.5) * 2.5 - 0.5
    np.testing.assert_allclose(depth[8], expected, atol=0.3)
    np.testing.assert_allclose(picture[8, :, 1], expected, atol=1)
    mask = np.zeros((40, 80), np.uint8)
    mask[:, 40:] = 255
    Image.fromarray(mask).save(tmp_path / "p.foreground.png")
    found = read_map(tmp_path / "p.foreground.png", "foreground", (16, 16))
    np.testing.assert_array_equal(found, np.arange(16)[None].repeat(16, 0) >= 8)


def test_a_colour_exr_and_a_turned_photograph(tmp_path):
    rgb = np.random.default_rng(0).random((6, 4, 3)).astype(np.float32)
    OpenEXR.File({}, {"RGB": rgb}).write(str(tmp_path / "c.exr"))
    found = read_map(tmp_path / "c.exr", "shading", (6, 4))
    np.testing.assert_allclose(found, rgb.mean(-1), rtol=1e-5)
    picture = np.arange(24 * 3, dtype=np.uint8).reshape(6, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # held a quarter turn to the right
    Image.fromarray(picture).save(tmp_path / "t.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "t.png", (4, 6)), np.rot90(picture, k=-1))


@pytest.mark.slow
def test_pictures_in_half_precision(scenes):
    study = resolve_inputs(pictures_study(scenes[0], model={"dtype": "bfloat16"}))
    import torch

    from ldmprobe_core.models import loading, weights
    from ldmprobe_core.models.architectures.registry import detect_architecture
    from ldmprobe_core.models.sampling import PipelineSampler

    architecture = detect_architecture(weights.model_folder(study.model))
    generator = PipelineSampler(
        loading.load_pipeline(study, torch.device("cpu")), architecture, study
    )
    samples = make_samples(study)[:2]
    pictures = np.stack([read_image(scenes[0] / s.source_image, (64, 64)) for s in samples])
    made = generated(generator, samples, pictures)
    assert all(np.isfinite(v).all() for v in made.activations.values.values())


def test_mistakes_of_pictures(tmp_path, scenes):
    def study(folder, **parts):
        return pictures_study(folder, **parts)

    with pytest.raises(UserError, match="there is no such folder"):
        resolve_inputs(study(tmp_path / "none"))
    with pytest.raises(UserError, match="holds 0 pictures"):
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
    with pytest.raises(UserError, match=r"1\.png: not a whole picture"):
        _read_images(tmp_path, ["1.png"], (8, 8))
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
    with pytest.raises(UserError, match="not 0 to 2: of a map of object numbers"):
        read_map(tmp_path / "numbers.png", "foreground", (4, 4))
    for name, data in (("cut.exr", b"v/1\x01"), ("empty.npy", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="not a map"):
            read_map(tmp_path / name, "depth", (4, 4))
    rgb.save(tmp_path / "square.png")
    np.save(tmp_path / "wide.npy", np.ones((4, 8)))
    with pytest.raises(UserError, match=r"wide\.npy: it is 4 x 8, and its picture 8 x 8"):
        read_map(tmp_path / "wide.npy", "depth", (4, 4), tmp_path / "square.png")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="not a map"):
        read_map(tmp_path / "objects.npy", "depth", (4, 4))
    assert resolve_inputs(study(scenes[0])).images.samples == 18


def test_hidden_files_are_no_pictures_and_two_of_one_stem_are_refused(tmp_path):
    for name in ("a.png", "._b.png", "c.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert list_images(str(tmp_path)) == ["a.png", "c.jpg"]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp")
    with pytest.raises(UserError, match=r"a\.png and a\.webp would share their maps"):
        list_images(str(tmp_path))
