"""Sheets of tiles of the report's page of samples."""

import io

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from run_helpers import carry_out

from ldmprobe_core.analysis.report.build import build_report

pytestmark = pytest.mark.slow


def _tile(sheet, column, row, size):
    return sheet[row * size : (row + 1) * size, column * size : (column + 1) * size].astype(float)


def test_sheet_has_images_probe_maps_and_labels_of_its_sample(tiny_study, tmp_path):
    run = carry_out(tiny_study(), str(tmp_path))
    summary = build_report(run, {})
    rows = [int(i) for i in run.open("step_images").sample.values]
    index = next(i for i in rows if run.samples[i].split == "test")
    data = run.location.read_bytes(f"report/samples/{index:05d}.webp")
    sheet = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    size, steps = run.open("images").image.shape[1], summary.steps
    assert sheet.shape == (size * (1 + 2 * len(summary.properties)), size * (steps + 1), 3)

    def likeness(column, row, image):
        """Correlation of a tile with an image, in grey; WebP is lossy, most of all in noise."""
        tile = _tile(sheet, column, row, size)
        return np.corrcoef(tile.mean(-1).ravel(), np.asarray(image, float).mean(-1).ravel())[0, 1]

    final = run.open("images").image.sel(sample=index).values
    assert likeness(steps, 0, final) > 0.8
    images = run.open("step_images").trajectory.sel(sample=index).values
    for column in range(steps):
        assert likeness(column, 0, images[column]) > 0.8
    names = list(summary.properties)
    mask = run.open("labels").foreground.sel(sample=index).values > run.study.labels.threshold
    row = 2 + 2 * names.index("foreground")
    assert np.abs(_tile(sheet, steps, row, size) - 255 * mask[..., None]).mean() < 12
    depth = run.open("labels").depth.sel(sample=index).values
    scaled = (depth - depth.min()) / (depth.max() - depth.min())
    row = 2 + 2 * names.index("depth")
    assert likeness(steps, row, colormaps["viridis"](scaled)[..., :3]) > 0.8
    of_step = run.open("labels_trajectory").depth.sel(sample=index).values[0]
    scaled = (of_step - depth.min()) / (depth.max() - depth.min())
    assert likeness(0, row, colormaps["viridis"](scaled)[..., :3]) > 0.8


def test_page_escapes_prompts(tiny_study, tmp_path):
    evil = "</script><b>x</b>"
    items = [f"{evil} {i}" for i in range(12)]
    run = carry_out(tiny_study(prompts={"items": items}), str(tmp_path))
    build_report(run, {})
    page = run.location.read_text("report/samples.html")
    assert "</script><b>" not in page
    assert page.count("</script>") == 1
