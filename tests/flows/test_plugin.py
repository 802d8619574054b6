"""A separate package with extensions, installed by pip and named in a study."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from distributed import Client
from run_helpers import assert_same

import ldmprobe as lp
from flows import cli
from flows.local_cluster import local_cluster
from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.spec import parse_intervention
from ldmprobe_core.interventions.stages import create_intervention, edit_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.units import UNITS
from ldmprobe_core.probing.fitters.registry import FITTERS
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.probe_kinds import PROBE_KINDS
from ldmprobe_core.study.properties import PROPERTIES

pytestmark = pytest.mark.slow

PLUGIN = Path(__file__).parents[1] / "plugin"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder into which pip has installed the package, on this process's path."""
    source, folder = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PLUGIN, source)
    words = "pip install -q --no-deps --no-index --no-build-isolation --target"
    subprocess.run([sys.executable, "-m", *words.split(), folder, source], check=True, timeout=200)
    monkeypatch.syspath_prepend(folder)
    registries = (PROPERTIES, PROBE_KINDS, FITTERS)
    before = [dict(entries) for entries in registries]
    yield folder
    for entries, old in zip(registries, before, strict=True):
        entries.clear()
        entries.update(old)
    for name in [name for name in sys.modules if name.startswith("ldmprobe_plugin")]:
        del sys.modules[name]


def write_study(tiny_model, folder):
    """Write the tiny model as one of the package's pipeline class, and a study of it."""
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "_class_name": "PluginPipeline"}))
    content = {
        "name": "plugin",
        "model": {"source": str(model)},
        "prompts": {"samples": 8},
        "sampling": {"steps": 2, "batch": 4, "guidance": 2.0},
        "capture": {"layers": ["middle"]},
        "labels": {
            "foreground": None, "depth": None, "shading": None, "class": None,
            "bright": "median",
        },
        "probes": {"kinds": ["least_squares"]},
        "controls": {"permuted_weights": False, "permutations": 2},
        "bootstrap": {"resamples": 100},
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_installed_package_extends_studies_in_python_commands_and_dask_workers(
    tiny_model, tmp_path, site
):
    path = write_study(tiny_model, tmp_path)
    assert "ldmprobe_plugin" not in sys.modules
    lp.load_study("tabletop")
    assert "ldmprobe_plugin" not in sys.modules
    plain = lp.run_study(lp.load_study(str(path)), str(tmp_path / "plain"), progress=False)
    grey = plain.read("images", "image").astype(np.float32).mean(-1)
    labels = grey > np.median(grey, axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(plain.read("labels", "bright"), labels)
    assert plain.summary.properties["bright"].best.kind == "least_squares"

    edit = {"prop": "bright", "kind": "least_squares", "samples": 1, "controls": ()}
    edited = Run(str(shutil.copytree(plain.url, tmp_path / "edited" / Path(plain.url).name)))
    edits = create_intervention(edited, parse_intervention(edit))

    cli.check(str(path))

    run = prepare_run(plain.study, str(tmp_path / "dask"))
    with local_cluster(workers=2, gpus=0) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=200)
        # The workers read the settings of an edit before they have read any study.
        client.submit(edit_batch, edited.url, edits, 0, 0, 0, 0, pure=False).result()
        for operations in list(UNITS.values()):
            if not operations.kind.per_group and operations.kind.applies_to(run.study):
                units = [
                    client.submit(operations.carry_out, run.url, *unit.index, pure=False)
                    for unit in operations.list_units(run)
                ]
                client.gather(units)
    assert (edited.read(f"interventions/{edits}", "image") > 0).any()
    assert_same(plain, run)


def test_study_that_names_an_extension_of_a_package_that_is_not_installed_is_refused(
    tiny_model, tmp_path
):
    path = write_study(tiny_model, tmp_path)
    with pytest.raises(UserError, match=r"bright is not a known key"):
        lp.load_study(str(path))
    with pytest.raises(UserError, match=r"least_squares.*or install the package that offers"):
        lp.load_study("tabletop", {"probes.kinds": ["least_squares"]})
