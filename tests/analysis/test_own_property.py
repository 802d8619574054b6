"""A property of the user's with a labeler in a module of hers, from the study to the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_helpers import carry_out

import ldmprobe as lp
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report.build import build_report, rebuild_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.stages import create_intervention
from ldmprobe_core.pipeline.model_cache import get_labelers
from ldmprobe_core.study.properties import PROPERTIES

MODULE = """
import numpy as np

def bright(images):
    grey = images.astype(np.float32).mean(-1)
    return grey > np.median(grey, axis=(1, 2), keepdims=True)
"""

ONLY_BRIGHT = {"foreground": None, "depth": None, "shading": None, "class": None}


@pytest.fixture
def forget(tmp_path, monkeypatch):
    """Writes the module; the returned function leaves a process that does not have it."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "labels_of_hers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)

    def clear():
        sys.modules.pop("labels_of_hers", None)
        PROPERTIES.pop("bright", None)
        if str(folder) in sys.path:
            sys.path.remove(str(folder))

    yield clear
    clear()


def bright_study(tiny_study, module="labels_of_hers"):
    return tiny_study(
        properties={"bright": {"kind": "mask", "labeler": f"{module}:bright"}},
        labels=ONLY_BRIGHT,
        probes={"kinds": ["ridge"]},
        controls={"permuted_weights": False, "permutations": 2},
    )


FRESH = """
import sys
from ldmprobe_core.interventions.spec import parse_intervention
from ldmprobe_core.interventions.stages import edit_batch

parse_intervention({"prop": "bright", "kind": "ridge"})
edit_batch(sys.argv[1], sys.argv[2], 0, 0, 0, 0)
assert "labels_of_hers" in sys.modules
"""


def edit_in_fresh_process(run, spec):
    """Edit in a process that has not read the study when it reads the settings, as workers do.

    The images of the edit are those that this process made; its null edits are left out.
    """
    name = create_intervention(run, spec.model_copy(update={"controls": ()}))
    site = Path(sys.modules["labels_of_hers"].__file__).parent
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    command = [sys.executable, "-c", FRESH, run.url, name]
    subprocess.run(command, check=True, timeout=200, env={**os.environ, "PYTHONPATH": path})
    images = [run.read(f"interventions/{one}", "image")[0] for one in (spec.name, name)]
    np.testing.assert_array_equal(*images)


def test_declared_property_is_probed_edited_and_read_without_its_module(
    tiny_study, tmp_path, forget
):
    run = carry_out(bright_study(tiny_study), str(tmp_path / "runs"))
    build_report(run, {})
    edited = lp.intervene(run, "bright", shift=(0.2, 0.0), samples=2, kind="ridge")
    assert "edited" in edited.effects
    edit_in_fresh_process(run, edited.intervention)
    forget()

    # A process without the module and without the registration reads the run.
    other = lp.open_run(run.url)
    assert (
        json.loads(other.location.read_text("study.json"))["properties"]["bright"]["kind"] == "mask"
    )
    rebuild_report(other)
    assert "bright-heatmap.svg" in other.location.read_text("report/index.html")
    assert [row["property"] for row in lp.compare([other, other])] == ["bright", "bright"]
    assert "labels_of_hers" not in sys.modules

    # By hand: the labels, and the Dice of one stored probe.
    grey = other.read("images", "image").astype(np.float32).mean(-1)
    labels = grey > np.median(grey, axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(other.read("labels", "bright"), labels)
    best = load_summary(other).properties["bright"].best
    assert best.metric == "dice"
    probe = other.probe("bright", best.step, best.layer)
    score = other.scores("bright").sel(
        condition="probe", kind="ridge", metric="dice", step=best.step, layer=best.layer
    )
    tokens = other.activations(best.layer).sel(step=best.step, sample=score.sample).values
    values = tokens.astype(float) @ probe.weight + probe.bias + probe.position
    factor = labels.shape[1] // values.shape[1]
    predicted = (values > probe.cut).repeat(factor, 1).repeat(factor, 2)
    truth = labels[score.sample.values]
    dice = 2 * (predicted & truth).sum((1, 2)) / (predicted.sum((1, 2)) + truth.sum((1, 2)))
    np.testing.assert_allclose(score.values, dice, atol=1e-5)


def test_worker_without_the_module_names_module_and_remedy(tiny_study, forget):
    study = bright_study(tiny_study, module="labels_elsewhere")
    with pytest.raises(
        UserError, match=r"^labels\.bright is .*No module named 'labels_elsewhere'.*Fix: install"
    ):
        get_labelers(study, {"bright": "0" * 16})


def test_property_decorator_registers_property_and_labeler(tiny_study, tmp_path):
    try:

        @lp.property("dim", kind="scalar", title="dimness")
        def dim(images):
            return 255.0 - images.mean(-1)

        globals()["dim"] = dim
        name = f"{__name__}:{dim.__qualname__}"
        study = tiny_study(labels={**ONLY_BRIGHT, "dim": name}, probes={"kinds": ["ridge"]})
        assert study.properties["dim"].title == "dimness"
        assert study.properties["dim"].metrics[0] == "spearman"
        run = carry_out(study, str(tmp_path))
        images = run.read("images", "image")
        np.testing.assert_allclose(run.read("labels", "dim"), 255 - images.mean(-1), rtol=1e-6)
        with pytest.raises(UserError, match="'dim': the name is taken in this process"):
            lp.property("dim", kind="mask")
        with pytest.raises(UserError, match=r"^property 'dark': kind is 'maks'"):
            lp.property("dark", kind="maks")
        assert "dark" not in PROPERTIES
    finally:
        PROPERTIES.pop("dim", None)


def test_property_decorator_refuses_what_a_study_cannot_name():
    class Dimness:
        def __call__(self, images):
            return 255.0 - images.mean(-1)

    try:
        with pytest.raises(UserError, match=r"^property 'dim': an object of type Dimness .*Fix: "):
            lp.property("dim", kind="scalar")(Dimness())
    finally:
        PROPERTIES.pop("dim", None)
