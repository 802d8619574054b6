"""What the documentation shows is carried out as it stands."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import carry_out, small_study

from benchmarks.figures import COMMITTED, DOCUMENT, documented
from ldmprobe_core.probing.linear import LinearProbe

ROOT = Path(__file__).parents[2]


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
    probe = LinearProbe(weight, float(names["probe"].bias.values[0]), 0.0)
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


def test_the_table_of_benchmarks_is_that_of_the_committed_figures():
    page = DOCUMENT.read_text()
    assert documented(page, json.loads(COMMITTED.read_text())) == page
    assert len([line for line in page.splitlines() if line.startswith("| ")]) > 20


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_every_benchmark_can_be_imported(path):
    importlib.import_module(f"benchmarks.{path.stem}")


def test_a_table_of_figures_by_hand():
    figures = [
        {"accumulator": "p", "name": "n", "value": 1.234, "unit": "x", "at_most": 1.5},
        {"accumulator": "p", "name": "m", "value": 20.0, "unit": "", "at_least": 30, "note": "why"},
    ]
    content = {
        "command": "make bench", "date": "2026-11-25", "machine": "1 x cpu",
        "versions": {"python": "3", "torch": "2", "numpy": "1", "zarr": "4"}, "figures": figures,
    }  # fmt: skip
    page = documented("a\n<!-- figures -->\nold\n<!-- /figures -->\nb\n", content)
    assert page.splitlines() == [
        "a", "<!-- figures -->",
        "`make bench`, 2026-11-25, 1 x cpu; python 3, torch 2, numpy 1, zarr 4.", "",
        "| | figure | value | goal | depends on |", "| --- | --- | --- | --- | --- |",
        "| p | n | 1.23 x | <= 1.5 met |  |", "| p | m | 20 | >= 30 MISSED | why |",
        "<!-- /figures -->", "b",
    ]  # fmt: skip
