"""Registry of labelers: registration, entry points, and a study with a registered labeler."""

import functools
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from run_helpers import carry_out

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.base import LabelerEntry
from ldmprobe_core.labelers.edges import gradient_edges
from ldmprobe_core.labelers.registry import (
    check_labeler,
    find_labeler,
    labeler_names,
    labelers_of,
    load_labeler,
    register_labeler,
)
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.probe_sections import LabelerSpec


def interactive(source):
    """Define the function ``mine`` as in a notebook, whose module has no file."""
    cell = {"__name__": "a_notebook"}
    exec(f"def mine(images):\n    {source}\n", cell)
    return cell["mine"]


def test_a_function_without_a_file_is_known_by_its_code():
    spec, fingerprints = LabelerSpec(name="cell"), []
    for source in (
        "return images.mean(-1)",
        "return images.max(-1)",
        "return [i.mean(-1) + 1 for i in images]",
        "return [i.mean(-1) + 2 for i in images]",
        "return images.mean(-1)",
    ):
        register_labeler("depth", "cell")(interactive(source))
        fingerprints.append(check_labeler("depth", spec))
    assert fingerprints[-1] == fingerprints[0]
    assert len(set(fingerprints)) == 4


def test_a_class_without_a_file_is_known_by_the_code_of_its_methods():
    spec, fingerprints = LabelerSpec(name="cell"), []
    for method in ("return images.mean(-1)", "return images.max(-1)", "return images.mean(-1)"):
        cell = {"__name__": "a_notebook"}
        exec(
            "class Mine:\n    def __init__(self, spec, device):\n        pass\n"
            f"    def __call__(self, images):\n        {method}\n",
            cell,
        )
        register_labeler("depth", "cell")(cell["Mine"])
        fingerprints.append(check_labeler("depth", spec))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


CELLS = {
    "decorated function": """
        @torch.no_grad()
        def mine(images):
            return images.{}(-1)
    """,
    "function under a decorator that is no wrapper": """
        def scaled(function):
            return lambda images: function(images) / 2
        @scaled
        def mine(images):
            return images.{}(-1)
    """,
    "cached function": """
        @functools.lru_cache
        def mine(images):
            return images.{}(-1)
    """,
    "default": """
        def mine(images, how="{}", *, channel=-1):
            return getattr(images, how)(channel)
    """,
    "keyword-only default": """
        def mine(images, *, how="{}"):
            return getattr(images, how)(-1)
    """,
    "default of an array": """
        def mine(images, weights=np.array([0, len("{}" * 500)])):
            return images[..., 0] * weights[1]
    """,
    "value of the function around it": """
        def maker(how):
            return lambda images: getattr(images, how)(-1)
        mine = maker("{}")
    """,
    "partial of a function": """
        def any_of(images, channel):
            return images.{}(channel)
        mine = functools.partial(any_of, channel=-1)
    """,
    "argument of a partial": """
        def any_of(how, images):
            return getattr(images, how)(-1)
        mine = functools.partial(functools.partial(any_of, "{}"))
    """,
    "keyword of a partial": """
        def any_of(images, how):
            return getattr(images, how)(-1)
        mine = functools.partial(any_of, how="{}")
    """,
    "decorated method": """
        class mine:
            units, classes = "1", ()
            def __init__(self, spec, device):
                super().__init__()
            @torch.no_grad()
            def __call__(self, images):
                return images.{}(-1)
    """,
    "attribute and base of a class": """
        class Base:
            how = "{}"
        class mine(Base):
            units, classes = "1", ()
            def __init__(self, spec, device):
                pass
            def __call__(self, images):
                return getattr(images, self.how)(-1)
    """,
    "network": """
        class Network(torch.nn.Module):
            def forward(self, images):
                return images.{}(-1)
        mine = Network()
    """,
    "method of an instance": """
        class Labels:
            @staticmethod
            def reduced(images):
                return images.{}(-1)
            @property
            def half(self):
                return 0.5
            def label(self, images):
                return self.half * self.reduced(images)
        mine = Labels().label
    """,
}
"""Cells of a notebook that define a labeler, by what of them an edit of the word {} changes."""


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_a_labeler_without_a_file_is_known_by_all_that_its_cell_says_of_it(cell):
    spec, fingerprints = LabelerSpec(name="cell"), []
    for word in ("mean", "max", "mean"):
        names = {"__name__": "a_notebook", "torch": torch, "functools": functools, "np": np}
        exec(textwrap.dedent(cell.format(word)), names)
        register_labeler("depth", "cell")(names["mine"])
        fingerprints.append(check_labeler("depth", spec))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def test_a_partial_of_a_function_in_a_file_is_known_by_the_file_and_its_arguments():
    spec, fingerprints = LabelerSpec(name="cell"), []
    for threshold in (1, 2, 1):
        register_labeler("depth", "cell")(functools.partial(exceeding, threshold=threshold))
        fingerprints.append(check_labeler("depth", spec))
        assert find_labeler("depth", "cell").file.path == Path(__file__)
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def maker_of_defaults(threshold):
    """Make a labeler that has a value from here as default."""

    def label(images, threshold=threshold):
        return images.mean(-1) > threshold

    return label


def maker_of_classes(threshold):
    """Make a class of labelers that has a value from here."""

    class Label:
        units, classes = "1", ()

        def __init__(self, spec, device):
            pass

        def __call__(self, images):
            return images.mean(-1) > threshold

    return Label


@pytest.mark.parametrize("maker", [maker_of_defaults, maker_of_classes])
def test_a_labeler_that_a_function_in_a_file_makes_is_known_by_the_values_it_has(maker):
    spec, fingerprints = LabelerSpec(name="cell"), []
    for threshold in (1, 2, 1):
        register_labeler("depth", "cell")(maker(threshold))
        fingerprints.append(check_labeler("depth", spec))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


@pytest.mark.parametrize("name", ["units", "classes"])
def test_a_function_without_a_file_is_known_by_its_units_and_classes(name):
    spec, fingerprints = LabelerSpec(name="cell"), []
    for value in (("a", "b"), ("b", "a"), ("a", "b")):
        labeler = interactive("return images")
        setattr(labeler, name, value)
        register_labeler("class", "cell")(labeler)
        fingerprints.append(check_labeler("class", spec))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def exceeding(images, threshold):
    """Mask of bright pixels, for the test of a partial."""
    return images.mean(-1) > threshold


def test_a_vectors_labeler_is_loaded_again_when_its_weights_were_overwritten(tmp_path):
    weights, images = tmp_path / "weights", np.zeros((1, 2, 2, 3), np.uint8)

    class Constant:
        units, classes = "1", ()

        def __init__(self, spec, device):
            self.value = float(weights.read_text())

        def __call__(self, images):
            return np.full(images.shape, self.value, np.float32)

    register_labeler("normals", "file", LabelerEntry(Constant, lambda spec: [weights]))
    for value in ("1", "2"):
        weights.write_text(value)
        labels = load_labeler("normals_y", LabelerSpec(name="file"), None)(images)
        np.testing.assert_array_equal(labels, np.full((1, 2, 2), float(value), np.float32))


def test_a_vectors_labeler_that_is_registered_again_takes_the_place_of_the_former():
    spec, images = LabelerSpec(name="cell"), np.ones((1, 2, 2, 3), np.uint8)
    for value in (1, 2):
        register_labeler("normals", "cell")(interactive(f"return images * {value} / 1"))
        labels = load_labeler("normals_x", spec, None)(images)
        np.testing.assert_array_equal(labels, np.full((1, 2, 2), value, np.float32))


class RowDepth:
    """Depth that grows down the image by 1 a row, whatever the image shows."""

    units = "row"
    classes = ()

    def __init__(self, spec, device):
        self.spec = spec

    def __call__(self, images):
        rows = np.arange(images.shape[1], dtype=np.float32)[None, :, None]
        return np.broadcast_to(rows, images.shape[:3]).copy()


def test_register_labeler_alone_adds_a_labeler_that_a_study_runs_with(tiny_study, tmp_path):
    register_labeler("depth", "rows")(RowDepth)
    study = tiny_study(labels={"depth": "rows", "foreground": None, "shading": None, "class": None})
    run = carry_out(study, str(tmp_path))
    depth = run.open("labels").depth
    assert depth.attrs["units"] == "row"
    np.testing.assert_array_equal(
        depth.values, np.broadcast_to(np.arange(16)[:, None], (12, 16, 16))
    )
    assert np.isfinite(run.open("scores/depth").score.sel(condition="probe", metric="rmse")).any()


def test_register_labeler_takes_an_entry_and_fingerprints_its_weights(tmp_path):
    weights = tmp_path / "weights.safetensors"
    entry = LabelerEntry(RowDepth, lambda spec: [weights])
    register_labeler("depth", "with-weights", entry)
    assert find_labeler("depth", "with-weights").load is RowDepth
    spec, fingerprints = LabelerSpec(name="with-weights"), []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        fingerprints.append(check_labeler("depth", spec))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def test_register_labeler_refuses_the_name_of_exact_maps():
    with pytest.raises(UserError, match="stands for exact maps"):
        register_labeler("depth", "maps")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that offers two labelers, one of which does not import."""
    metadata = tmp_path / "rows-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rows\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[ldmprobe.labelers]\ndepth.offered = rows_of_mine:Rows\ndepth.broken = rows_of_mine:No\n"
    )
    (tmp_path / "rows_of_mine.py").write_text("class Rows:\n    units, classes = 'row', ()\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_find_labeler_loads_an_entry_point_when_it_is_asked_for(package):
    assert {"midas", "offered", "tabletop"} <= set(labeler_names("depth"))
    assert "offered" not in labeler_names("shading")
    assert "rows_of_mine" not in sys.modules
    assert find_labeler("depth", "offered").load.units == "row"
    with pytest.raises(UserError, match=r"broken.*rows_of_mine:No cannot be imported"):
        find_labeler("depth", "broken")


def test_exact_maps_are_a_labeler_of_every_property_that_is_a_map():
    for prop in ("foreground", "depth", "edges", "normals_x"):
        assert "maps" in labeler_names(prop)
    assert "maps" not in labeler_names("class")
    with pytest.raises(
        UserError, match=r"labels\.depth is 'no'.*depth-anything, (.*, )?maps, .*midas"
    ):
        find_labeler("depth", "no")


def test_labelers_named_by_their_module_are_not_listed():
    name = f"{gradient_edges.__module__}:gradient_edges"
    find_labeler("edges", name)
    assert name not in labeler_names("edges")


def test_find_labeler_lists_the_names_of_the_property():
    with pytest.raises(UserError, match=r"labels\.shading is 'midas'.*marigold, retinex"):
        find_labeler("shading", "midas")


@pytest.mark.parametrize(
    ("prop", "name", "weights"),
    [
        ("depth", "tabletop", None),
        ("depth", "midas", "folder"),
        ("shading", "retinex", None),
        ("class", "vgg16", "file"),
    ],
)
def test_check_labeler_refuses_a_revision_of_what_has_none(tmp_path, prop, name, weights):
    (tmp_path / "model.safetensors").write_bytes(b"")
    files = {"folder": str(tmp_path), "file": str(tmp_path / "model.safetensors"), None: None}
    spec = LabelerSpec(name=name, weights=files[weights], revision="main")
    with pytest.raises(UserError, match=rf"labels\.{prop} .*only hub ids have revisions.*Fix"):
        check_labeler(prop, spec)


def test_labelers_of_takes_a_name_alone_or_a_mapping():
    short = parse_study({"labels": {"depth": "midas", "class": None}})
    long = parse_study({"labels": {"depth": {"name": "midas"}, "class": None}})
    assert short == long
    assert labelers_of(short)["depth"] == LabelerSpec(name="midas")
    with pytest.raises(UserError, match=r"labels\.depth.*weightz"):
        parse_study({"labels": {"depth": {"name": "midas", "weightz": "x"}}})
