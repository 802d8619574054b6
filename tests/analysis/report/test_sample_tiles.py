"""Tiles of the page of samples that are smaller than the images, and drawn in several parts."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report import samples_page
from ldmprobe_core.analysis.report.samples_page import write_samples_page
from ldmprobe_core.analysis.stored_probes import SampleMaps
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.storage.run import Run


@pytest.fixture
def run(finished_run, tmp_path):
    shutil.copytree(finished_run.url, tmp_path / "run")
    return Run(str(tmp_path / "run"))


def _sheets(run):
    summary = load_summary(run)
    count = write_samples_page(run, SampleMaps(run, label_set(run), summary), summary)
    files = sorted(Path(run.url, "report", "samples").glob("*.webp"))
    assert count == len(files) > 1
    return {int(file.stem): file.read_bytes() for file in files}


def test_parts_of_one_sample_give_the_same_sheets(run, monkeypatch):
    together = _sheets(run)
    monkeypatch.setattr(samples_page, "MAP_BYTES", 1)
    assert _sheets(run) == together


def test_reduced_tiles_show_block_means(run, monkeypatch):
    size = run.open("images").image.shape[1]
    monkeypatch.setattr(samples_page, "TILE", size // 2)
    half, summary = size // 2, load_summary(run)
    index, data = next(iter(_sheets(run).items()))
    sheet = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)
    assert sheet.shape == (half * (1 + 2 * len(summary.properties)), half * (summary.steps + 1), 3)
    tiles = sheet.reshape(-1, half, summary.steps + 1, half, 3).swapaxes(1, 2)

    def reduced(pixels):
        """Mean of each 2 x 2 pixels."""
        return sum(pixels[i::2, j::2].astype(float) for i in (0, 1) for j in (0, 1)) / 4

    def likeness(tile, expected):
        return np.corrcoef(tile.mean(-1).ravel(), expected.mean(-1).ravel())[0, 1]

    image = run.open("images").image.sel(sample=index).values
    assert likeness(tiles[0, -1], reduced(image)) > 0.8
    depth = run.open("labels").depth.sel(sample=index).values.astype(float)
    scaled = (reduced(depth) - depth.min()) / (depth.max() - depth.min())
    row = 1 + 2 * list(summary.properties).index("depth")
    expected = 255 * colormaps["viridis"](scaled)[..., :3]
    for of_label in (tiles[row, -1], tiles[row + 1, -1]):  # beside probes and beside the labeler
        assert likeness(of_label, expected) > 0.8


@pytest.mark.parametrize("factor", [1, 0.5, 2])
def test_probe_maps_of_another_size_repeat_or_skip_tokens(run, factor):
    maps = SampleMaps(run, label_set(run), load_summary(run))
    sample = int(maps.labels.heldout[0])
    full = maps.of_probes("depth", [sample], [1, 2])
    side = int(full.shape[-1] * factor)
    sized = maps.of_probes("depth", [sample], [1, 2], (side, side))
    rows = np.floor(np.arange(side) / factor).astype(int)
    np.testing.assert_array_equal(sized, full[:, :, rows][..., rows])


def test_map_of_a_mask_without_a_probe_is_undefined_and_not_empty(run):
    maps = SampleMaps(run, label_set(run), load_summary(run))
    sample, probes = int(maps.labels.heldout[0]), maps._probes["foreground"]
    defined = maps.of_probes("foreground", [sample], [1, 2, 3])
    assert set(np.unique(defined)) <= {0.0, 1.0}
    probes[0] = replace(probes[0], weight=np.full_like(probes[0].weight, np.nan))
    probes[1] = replace(probes[1], cut=float("nan"))
    undefined = maps.of_probes("foreground", [sample], [1, 2, 3])
    assert np.isnan(undefined[:, :2]).all()
    np.testing.assert_array_equal(undefined[:, 2], defined[:, 2])
