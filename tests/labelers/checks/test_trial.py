"""Trial calls of the user's labelers before anything costly is computed."""

import sys
import textwrap

import pytest
import torch

from flows import cli
from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.checks.trial import trial_problems
from ldmprobe_core.labelers.registry import load_labeler
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.study.probe_sections import LabelerSpec

SIZE = 8, 16
CPU = torch.device("cpu")
MODULE = """
    import numpy as np

    calls = []

    def counted(images):
        calls.append(images.shape)
        return images[..., 0] / 255

    def undefined(images):
        return np.full(images.shape[:3], np.nan)

    def levels(images):
        return np.where(images[..., 0] > 128, 255, 0)

    def graded(images):
        import torch
        return [torch.zeros(images.shape[1:3], requires_grad=True) for _ in images]

    def half(images):
        return images[:, ::2, :, 0] / 255

    def leaving(images):
        raise SystemExit(0)

    class Loaded:
        def __init__(self, spec, device):
            pass

        def __call__(self, images):
            return counted(images)

    class Worded(Loaded):
        def __call__(self, images):
            return "no map"

    def vectors(images):
        calls.append(images.shape)
        return np.zeros((*images.shape[:3], 3))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a module with labelers."""
    name = f"tried_in_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def loaded(prop, name):
    return load_labeler(prop, LabelerSpec(name=name), CPU)


@pytest.mark.parametrize(
    ("labeler", "words"),
    [
        ("counted", None),
        ("undefined", None),
        ("Loaded", None),
        ("half", "returned shape (1, 4, 16) for images of shape (1, 8, 16, 3). Fix: return"),
        ("leaving", "failed on an image of noise, 8 x 16 pixels (SystemExit: 0). Fix: correct"),
        ("Worded", "returned str, not an array of numbers ("),
        ("graded", "returned list, not an array of numbers (RuntimeError: Can't call numpy()"),
    ],
)
def test_a_labeler_is_refused_for_exceptions_types_and_shapes_alone(module, labeler, words):
    name = f"{module}:{labeler}"
    problems = trial_problems({"shading": loaded("shading", name)}, SIZE, elsewhere=False)
    assert len(problems) == (words is not None)
    for problem in problems:
        assert problem.startswith(f"labels.shading: the labeler {name!r} {words}")


def test_values_of_masks_alone_are_shares(module):
    labelers = {prop: loaded(prop, f"{module}:levels") for prop in ("depth", "foreground")}
    (problem,) = trial_problems(labelers, SIZE, elsewhere=False)
    assert problem.startswith(
        f"labels.foreground: the labeler '{module}:levels' returned values from 0 to 255 for an "
        "image of noise, 8 x 16 pixels. Fix: let it"
    )


def test_the_components_of_a_vector_are_tried_in_one_call(module):
    names = [f"normals_{axis}" for axis in "xyz"]
    labelers = {name: loaded(name, f"{module}:vectors") for name in names}
    assert trial_problems(labelers, SIZE, elsewhere=False) == ()
    assert sys.modules[module].calls == [(1, 8, 16, 3)]


@pytest.mark.parametrize(("prop", "name"), [("foreground", "tabletop"), ("edges", "gradient")])
def test_labelers_of_this_package_are_not_tried(monkeypatch, prop, name):
    labeler = loaded(prop, name)
    monkeypatch.setattr(labeler, "labeler", lambda images: pytest.fail("called"))
    assert trial_problems({prop: labeler}, SIZE, elsewhere=False) == ()


def test_labelers_are_not_called_where_other_machines_label(module):
    labelers = {"shading": loaded("shading", f"{module}:leaving")}
    assert trial_problems(labelers, SIZE, elsewhere=True) == ()


@pytest.mark.parametrize("labeler", ["leaving", "Worded"])
def test_a_labeler_that_cannot_label_is_refused_before_its_run_exists(
    tiny_study, tmp_path, module, labeler
):
    labels = {"shading": f"{module}:{labeler}", "foreground": None, "depth": None, "class": None}
    with pytest.raises(UserError, match=rf"^labels\.shading: the labeler '{module}:{labeler}'"):
        prepare_run(tiny_study(labels=labels), str(tmp_path / "runs"))
    assert not list((tmp_path / "runs").glob("*"))


def test_a_new_run_calls_a_labeler_once(tiny_study, tmp_path, module):
    labels = {"shading": f"{module}:Loaded", "foreground": None, "depth": None, "class": None}
    for _ in range(2):
        prepare_run(tiny_study(labels=labels), str(tmp_path / "runs"))
    assert [shape[0] for shape in sys.modules[module].calls] == [1]


@pytest.mark.parametrize(
    ("labeler", "code", "calls"), [("leaving", 1, 0), ("counted", 0, 1), ("Loaded", 0, 0)]
)
def test_check_tries_functions_and_loads_no_labeler(
    module, monkeypatch, capfd, labeler, code, calls
):
    words = ["ldmprobe", "check", "tabletop", "--set", f"labels.shading={module}:{labeler}"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    said = " ".join(capfd.readouterr().err.split())
    assert ("pixels (SystemExit: 0). Fix: correct" in said) == (labeler == "leaving")
    assert len(sys.modules[module].calls) == calls
