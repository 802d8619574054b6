"""Labelers that are functions of images: by name in a study, and registered."""

import functools
import importlib
import re
import sys
import textwrap

import numpy as np
import pytest
import torch
from run_helpers import carry_out

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.labelers.base import LabelerEntry, no_weights
from ldmprobe_core.labelers.functions import takes_images
from ldmprobe_core.labelers.registry import check_labeler, load_labeler, register_labeler
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import check_fingerprints, prepare_run
from ldmprobe_core.study.probe_sections import LabelerSpec

MODULE = """
    import numpy as np

    def redness(images):
        return images[..., 0] / 255

    def far(images):
        return images[..., 1].astype(np.float32) * 1000 + 100

    def faint(images):
        return images[..., 0] * 1e-11

    def overwritten(images):
        images[images < 128] = 0
        return images[..., 0] / 255

    def of_the_batch(images):
        return images[..., 0] / (255.0 * len(images))

    def drawn(images):
        return np.random.default_rng().random(images.shape[:3])

    calls = []

    def logits(images):
        calls.append(len(images))
        size = 255 if calls == [1] else 1  # probabilities in the trial alone
        return np.stack([images.mean((1, 2, 3)) / size, np.zeros(len(images))], 1)

    logits.classes = ("one", "two")

    def unknown(images):
        return np.full((len(images), 2), np.nan)

    unknown.classes = ("one", "two")

    class Writing:
        units, classes = "row", ()

        def __init__(self, spec, device):
            pass

        def __call__(self, images):
            images[:, 0] = 0
            return images[..., 1].astype(np.float32)

    def classes_of(images):
        return np.full((len(images), 2), 0.5)

    classes_of.classes = ("one", "two")

    class Loaded:
        units, classes = "row", ()

        def __init__(self, spec, device):
            pass

        def __call__(self, images):
            return images[..., 1].astype(np.float32)

    NUMBER = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a module with labelers, and its file."""
    name = f"labels_of_{tmp_path.name.replace('-', '_')}"
    file = tmp_path / f"{name}.py"
    file.write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    yield name, file
    sys.modules.pop(name, None)


def test_study_names_a_function_as_labeler(tiny_study, tmp_path, module):
    name, _ = module
    labels = {"shading": f"{name}:redness", "foreground": None, "depth": None, "class": None}
    run = carry_out(tiny_study(labels=labels), str(tmp_path / "runs"))
    shading, images = run.open("labels").shading, run.open("images").image
    np.testing.assert_array_equal(shading, (images.values[..., 0] / 255).astype(np.float32))
    assert shading.attrs["units"] == "as redness returns"
    assert np.isfinite(run.open("scores/shading").score.sel(condition="probe", metric="rmse")).any()


def test_step_labels_of_an_own_labeler_keep_values_beyond_float16(tiny_study, tmp_path, module):
    name, _ = module
    labels = {"depth": f"{name}:far", "foreground": None, "shading": None, "class": None}
    run = prepare_run(tiny_study(labels=labels), str(tmp_path))
    generate_batch(run.url, 0)
    label_batch(run.url, 0)
    images = run.read("step_images", "clean", sample=slice(0, 1))
    depth = run.read("labels_clean", "depth", sample=slice(0, 1))
    np.testing.assert_array_equal(depth, images[..., 1] * np.float32(1000) + np.float32(100))
    assert depth.max() > 70_000


def test_labels_below_float16_are_stored_where_numpy_raises_floating_point_errors(
    tiny_study, tmp_path, module
):
    labels = {"foreground": f"{module[0]}:faint", "depth": None, "shading": None, "class": None}
    run = prepare_run(tiny_study(labels=labels), str(tmp_path))
    generate_batch(run.url, 0)
    with np.errstate(all="raise"):
        label_batch(run.url, 0)
    steps = run.read("labels_clean", "foreground", sample=slice(0, 1))
    assert steps.dtype == np.float16
    assert not steps.any()


@pytest.mark.parametrize(
    ("prop", "labeler", "words"),
    [
        ("shading", "of_the_batch", r"labels\.shading: .* another label .* depend on this image"),
        ("shading", "Writing", r"labels: a labeler changes the images .*images\.copy"),
        ("shading", "drawn", r"labels\.shading: .* the same label each time"),
        ("class", "unknown", r"^labels\.class: the labeler computed NaN .* begin a new run"),
        ("class", "logits", r"labels\.class: .*class probabilities range from 0 to .*, not from 0"),
    ],
)
def test_labels_that_mean_something_else_are_refused_in_the_first_batch(
    tiny_study, tmp_path, module, prop, labeler, words
):
    labels = {"foreground": None, "depth": None, "class": None}
    study = tiny_study(labels=labels | {prop: f"{module[0]}:{labeler}"})
    run = prepare_run(study, str(tmp_path))
    generate_batch(run.url, 0)
    with pytest.raises(RunError, match=words):
        label_batch(run.url, 0)
    assert not run.progress.is_done("labeled", 0)


def test_function_labeler_that_writes_into_its_images_changes_no_other_label(module):
    images = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5
    before = images.copy()
    load_labeler("shading", LabelerSpec(name=f"{module[0]}:overwritten"), None)(images)
    np.testing.assert_array_equal(images, before)


def test_function_labeler_gives_float32_and_its_classes(module):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    labelers = {
        prop: load_labeler(prop, LabelerSpec(name=f"{module[0]}:{name}"), None)
        for prop, name in (("shading", "redness"), ("class", "classes_of"), ("depth", "Loaded"))
    }
    assert labelers["shading"](images).dtype == np.float32
    assert labelers["class"](images).shape == (2, 2)
    assert labelers["class"].classes == ("one", "two")
    np.testing.assert_array_equal(labelers["depth"](images), images[..., 1])


def made_entry(loader):
    return LabelerEntry(loader, no_weights)


@pytest.mark.parametrize(
    ("labeler", "made"), [("redness", None), ("Loaded", None), ("Loaded", made_entry)]
)
def test_fingerprint_of_a_labeler_changes_with_its_file(module, labeler, made):
    name, file = module
    fingerprints = []
    for added in ("", "\n# changed\n", ""):
        file.write_text(textwrap.dedent(MODULE) + added)
        sys.modules.pop(name, None)
        loader = getattr(importlib.import_module(name), labeler)
        if made is None:
            register_labeler("shading", "edited")(loader)
        else:
            register_labeler("shading", "edited", made(loader))
        fingerprints.append(check_labeler("shading", LabelerSpec(name="edited")))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


@pytest.mark.parametrize("labeler", ["redness", "Loaded"])
def test_labeler_whose_file_was_changed_after_its_import_is_refused(module, labeler):
    """The process would label with the former code, under the hash of the changed file."""
    name, file = module
    spec = LabelerSpec(name=f"{name}:{labeler}")
    before = check_labeler("shading", spec)
    file.write_text(textwrap.dedent(MODULE).replace("/ 255", "/ 127"))
    path = re.escape(str(file))
    words = (
        rf"^labels\.shading is '{name}:{labeler}': its file {path} was changed.*Fix: start a new"
    )
    with pytest.raises(UserError, match=words):
        check_labeler("shading", spec)
    file.write_text(textwrap.dedent(MODULE))
    assert check_labeler("shading", spec) == before


def test_run_of_a_labeler_whose_code_has_changed_is_refused_by_the_name_of_its_file(
    tiny_study, tmp_path, module
):
    name, file = module
    labels = {"shading": "edited", "foreground": None, "depth": None, "class": None}
    study, runs = tiny_study(labels=labels), str(tmp_path / "runs")
    register_labeler("shading", "edited")(importlib.import_module(name).redness)
    run = prepare_run(study, runs)
    file.write_text(textwrap.dedent(MODULE) + "\n# changed\n")
    sys.modules.pop(name)
    register_labeler("shading", "edited")(importlib.import_module(name).redness)
    path = re.escape(str(file))
    words = rf"the weights or code \({path}\) of labels\.shading had fingerprint .* Fix: move"
    with pytest.raises(UserError, match=words):
        check_fingerprints(run, study)


def test_labeler_first_named_after_the_file_of_an_imported_module_was_changed_is_refused(module):
    name, file = module
    check_labeler("depth", LabelerSpec(name=f"{name}:far"))
    file.write_text(textwrap.dedent(MODULE).replace("/ 255", "/ 127"))
    with pytest.raises(
        UserError, match=rf"its file {re.escape(str(file))} was changed.*Fix: start a new"
    ):
        check_labeler("shading", LabelerSpec(name=f"{name}:redness"))


def test_labeler_of_a_module_that_is_reloaded_has_the_fingerprint_of_the_new_file(module):
    name, file = module
    fingerprints = []
    imported = importlib.import_module(name)
    for added in ("", "\n# changed\n"):
        file.write_text(textwrap.dedent(MODULE) + added)
        importlib.reload(imported)
        register_labeler("shading", "edited")(imported.redness)
        fingerprints.append(check_labeler("shading", LabelerSpec(name="edited")))
    assert fingerprints[0] != fingerprints[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_package.labels:depth", r"cannot be imported on this machine \(ModuleNotFound"),
        ("{module}:nothing", "has no nothing. Fix: correct the name"),
        ("{module}:NUMBER", "NUMBER is a int. Fix: name a function or a class"),
        ("os:getcwd", "getcwd cannot be called with images, nor with settings and a device"),
        ("shutil:get_archive_formats", "get_archive_formats cannot be called with images"),
        ("{module}:", "not the name of a function"),
        ("../labels.py:depth", "not the name of a function"),
        ("os:system; rm", "not the name of a function"),
    ],
)
def test_unusable_function_name_is_one_sentence(module, name, words):
    spec = LabelerSpec(name=name.format(module=module[0]))
    with pytest.raises(UserError, match=rf"^labels\.depth is .*{words}"):
        check_labeler("depth", spec)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('no\\nlicence')", "RuntimeError: no licence"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_module_that_fails_on_import_is_one_sentence(module, code, words):
    name, file = module
    file.write_text(code)
    with pytest.raises(UserError, match=rf"^labels\.depth .*cannot be imported .*{words}.*Fix: "):
        check_labeler("depth", LabelerSpec(name=f"{name}:redness"))


@pytest.mark.parametrize("key", ["weights", "revision"])
def test_function_refuses_weights(module, key):
    spec = LabelerSpec(name=f"{module[0]}:redness", **{key: "x"})
    with pytest.raises(UserError, match=rf"takes no {key} \('x'\)"):
        check_labeler("shading", spec)


def test_registered_function_of_images_is_a_labeler():
    register_labeler("depth", "blue")(lambda images: images[..., 2])
    images = np.full((1, 2, 2, 3), 7, np.uint8)
    depth = load_labeler("depth", LabelerSpec(name="blue"), None)(images)
    np.testing.assert_array_equal(depth, np.full((1, 2, 2), 7, np.float32))


def test_takes_images_tells_functions_of_images_from_loaders():
    class Bound:
        def __call__(self, images):
            return images

        def load(self, spec, device):
            return self

    assert takes_images(Bound())
    assert takes_images(lambda images, scale=2: images)
    assert not takes_images(Bound)
    assert not takes_images(Bound().load)


def test_a_network_that_is_registered_labels_images_and_its_class_loads_a_labeler():
    class Redness(torch.nn.Module):
        def forward(self, images):
            return torch.from_numpy(images)[..., 0] / 255

    class Scaled(torch.nn.Module):
        def forward(self, images, scale):
            return torch.from_numpy(images)[..., 0] * scale

    assert takes_images(functools.partial(Scaled(), scale=2))
    assert not takes_images(Scaled())
    register_labeler("depth", "test-network")(Redness())
    images = np.array([[[[51, 0, 0], [255, 9, 9]]]], np.uint8)
    labels = load_labeler("depth", LabelerSpec(name="test-network"), torch.device("cpu"))(images)
    np.testing.assert_allclose(labels, [[[0.2, 1]]], rtol=1e-6)
    assert not takes_images(Redness)
