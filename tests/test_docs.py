"""What the documentation shows is carried out as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import carry_out, small_study

from ldmprobe_core.probes import Probe

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    return carry_out(small_study("read", tiny_model, 12), str(tmp_path_factory.mktemp("read")))


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)


def test_a_stranger_redraws_a_heatmap_and_a_row(run, tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    parts = blocks("reading_a_run.md")
    code = [line for part in parts[1:] for line in part.splitlines() if line.strip()]
    assert len(code) < 20
    names = {"url": run.url}
    for part in parts:
        exec(part, names)  # our own documentation
    for picture in ("heatmap.png", "row.png"):
        pixels = np.asarray(Image.open(tmp_path / picture).convert("L"))
        assert pixels.std() > 5  # something is drawn
    weight = names["probe"].weight.values[0]
    probe = Probe(weight, float(names["probe"].bias.values[0]), 0.0)
    np.testing.assert_allclose(
        names["depth"].isel(step=0).values,
        probe.predict(names["tokens"].isel(step=0).values[None])[0],
        rtol=1e-6,
    )


def test_the_stores_example_reads_a_run(run):
    (code,) = blocks("store.md")
    names = {}
    exec(code.replace('"runs/tabletop-..."', repr(run.url)), names)
    score = names["score"]
    assert set(np.unique(score.split)) == {"validation", "test"}
