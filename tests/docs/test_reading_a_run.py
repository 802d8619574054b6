"""docs/reading_a_run.md, executed as it stands."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report.text import best_rows

ROOT = Path(__file__).parents[2]


def test_page_explains_every_row_of_the_result_table():
    page = (ROOT / "docs/reading_a_run.md").read_text("utf-8")
    table = page.partition("| row | meaning |")[2].partition("\n\n")[0]
    explained = [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]]
    summary = Summary.model_validate_json((ROOT / "docs/tabletop-summary.json").read_bytes())
    rows = [name for name in best_rows(summary)[0] if name not in ("property", "at")]
    assert explained == rows


def test_reading_a_run_redraws_heatmap_and_row(documented_run, code_blocks, tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks("docs/reading_a_run.md")
    code = [line for block in blocks[1:] for line in block.splitlines() if line.strip()]
    assert len(code) < 20
    names = {"url": documented_run.url}
    for block in blocks:
        exec(block, names)  # our own documentation
    for figure in ("heatmap.png", "row.png"):
        pixels = np.asarray(Image.open(tmp_path / figure).convert("L"))
        assert pixels.std() > 5  # something is drawn
    tokens = names["tokens"].isel(step=0).values  # (y, x, channel)
    weight, bias = names["probe"].weight.values[0], names["probe"].bias.values[0]
    summary = json.loads(documented_run.location.read_text("summary.json"))
    assert names["layer"] == summary["properties"]["depth"]["layer"]["name"]
    expected = np.einsum("yxc,c->yx", tokens, weight) + bias + names["probe"].position.values[0]
    np.testing.assert_allclose(names["depth"].isel(step=0).values, expected, rtol=1e-6)
