"""Page of a report on which every test sample can be followed over the steps.

Each sample has one image file, a sheet of tiles.  Its columns are the steps with step images and
the final image; its rows are the images and each property's probe maps and labeler maps.  The page
shows one step's column of all sheets at a time.  It works from a folder, without a server.
"""

from __future__ import annotations

import io
import json
import math
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from PIL import Image

from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report.text import metric_title, short_layer
from ldmprobe_core.pipeline.groups import STEP_IMAGES, samples_in
from ldmprobe_core.pipeline.labels import as_label
from ldmprobe_core.probing.block_scores import upsample
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import property_of

TILE = 64
"""Largest width and height of a tile in pixels; larger images are reduced by averaging."""
_FIRST_SHOWN = 2
"""Index of the column that the page shows first; it is step 3 if all steps have images."""
_BATCH = 16
"""Number of samples whose activations are in memory at once."""
_GREY = (0.6, 0.6, 0.6, 1.0)
"""Colour (RGBA) of pixels without a measured label."""


def write_samples_page(run: Run, labels: LabelSet, summary: Summary) -> int:
    """Write ``report/samples.html``, and an image sheet for each test sample with step images.

    Args:
        run: finished run.
        labels: label set of the run.
        summary: summary of the run; probes are those of each property's best layer.

    Returns:
        number of samples on the page; the page is not written if there are none.
    """
    with_images = samples_in(run, STEP_IMAGES)
    rows = [row for row, i in enumerate(with_images) if run.samples[int(i)].split == "test"]
    if not rows:
        return 0
    sheets = _Sheets(run, labels, summary)
    cards = []
    for start in range(0, len(rows), _BATCH):
        members = rows[start : start + _BATCH]
        indices = [int(with_images[row]) for row in members]
        for index, sheet in zip(indices, sheets.draw(members, indices), strict=True):
            run.location.write_bytes(f"report/samples/{index:05d}.webp", sheet)
            sample = run.samples[index]
            cards.append(
                {
                    "index": index,
                    "text": sample.prompt or sample.source_image or "",
                    "category": sample.category or "",
                    "scores": {prop: sheets.scores_of(prop, index) for prop in summary.properties},
                }
            )
    run.location.write_text("report/samples.html", _page(summary, sheets, cards))
    return len(cards)


class _Sheets:
    """Renderer of image sheets: step images and maps of one sample as a grid of tiles.

    Attributes:
        steps: steps with step images, counted from 1, in the order of the columns.
        tile: width and height of a tile in pixels.
    """

    def __init__(self, run: Run, labels: LabelSet, summary: Summary) -> None:
        self.run, self.labels, self.summary = run, labels, summary
        self.steps = [int(step) for step in run.read(STEP_IMAGES, "step")]
        height, width = labels.maps[next(iter(summary.properties))].shape[1:]
        self.reduction = max(1, math.ceil(max(height, width) / TILE))
        self.tile = (width // self.reduction, height // self.reduction)
        self.probes: dict[str, list[LinearProbe]] = {}
        self.scores: dict[str, Any] = {}
        for prop, result in summary.properties.items():
            best = result.best
            stored = run.open(f"probes/{best.layer}").sel(property=prop, kind=best.kind).load()
            self.probes[prop] = [
                LinearProbe.from_dataset(stored.isel(step=step - 1)) for step in self.steps
            ]
            self.scores[prop] = (
                run.open(f"scores/{prop}")
                .score.sel(condition="probe", kind=best.kind, metric=best.metric, layer=best.layer)
                .transpose("sample", "step")
                .load()
            )

    def scores_of(self, prop: str, index: int) -> list[float | None]:
        """Return a sample's scores at the displayed steps, rounded; None where undefined."""
        values = self.scores[prop].sel(sample=index).values[[step - 1 for step in self.steps]]
        return [round(float(v), 3) if np.isfinite(v) else None for v in values]

    def draw(self, rows: list[int], indices: list[int]) -> list[bytes]:
        """Draw the sheets of the given samples, as WebP files.

        Args:
            rows: rows of the samples in the groups of step images.
            indices: indices of the same samples in the run.
        """
        run = self.run
        images = np.concatenate(
            [
                run.read(STEP_IMAGES, "trajectory", sample=rows),
                run.read("images", "image", sample=indices)[:, None],
            ],
            axis=1,
        )
        lines = [images / 255.0]
        for prop, result in self.summary.properties.items():
            truth = self.labels.maps[prop][indices].astype(float)
            size, best = truth.shape[1:], result.best
            mask = property_of(prop).is_mask
            predicted = []
            for step, probe in zip(self.steps, self.probes[prop], strict=True):
                tokens = run.read(
                    f"activations/{best.layer}", "activation", sample=indices, step=step - 1
                )
                values = probe.predict(tokens)
                predicted.append(upsample(values > probe.cut if mask else values, size))
            of_images = run.read("labels_trajectory", prop, sample=rows).astype(float)
            of_images = as_label(run.study, prop, of_images).astype(float)
            for maps in (np.stack(predicted, 1).astype(float), of_images):
                lines.append(_colored(prop, np.concatenate([maps, truth[:, None]], 1), truth))
        return [self._sheet([line[i] for line in lines]) for i in range(len(rows))]

    def _sheet(self, lines: list[np.ndarray]) -> bytes:
        """Encode one sample's sheet as WebP, from rows of tiles (column, y, x, rgb) in 0..1."""
        width, height = self.tile
        k = self.reduction
        parts = []
        for line in lines:
            cut = line[:, : height * k, : width * k]
            blocks = cut.reshape(len(cut), height, k, width, k, 3).mean((2, 4))
            parts.append(np.concatenate(list(blocks), axis=1))
        pixels = np.rint(np.clip(np.concatenate(parts), 0, 1) * 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "webp", quality=80, method=2)
        return buffer.getvalue()


def _colored(prop: str, maps: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Colour maps (sample, column, y, x) in the value range of each sample's label, RGB in 0..1."""
    drawing = property_of(prop).drawing
    colors = colormaps[drawing.colormap].with_extremes(bad=_GREY)
    colored = np.empty((*maps.shape, 3), np.float32)
    for out, values, label in zip(colored, maps, truth, strict=True):
        low, high = drawing.limits or (np.nanmin(label), np.nanmax(label))
        scale = Normalize(low, high, clip=True)
        out[:] = colors(scale(np.ma.masked_invalid(values)))[..., :3]
    return colored


def _page(summary: Summary, sheets: _Sheets, cards: list[dict[str, Any]]) -> str:
    """Render the HTML page that shows the samples."""
    template = resources.files(__package__) / "samples.html"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    properties = {
        prop: f"{metric_title(result.best.metric)}, {short_layer(result.best.layer)}"
        for prop, result in summary.properties.items()
    }
    # Escape "<", so that a prompt that contains "</script>" cannot end the script element.
    data = json.dumps({"steps": sheets.steps, "cards": cards}).replace("<", "\\u003c")
    return environment.from_string(template.read_text("utf-8")).render(
        name=summary.study,
        cards=cards,
        steps=sheets.steps,
        start=min(_FIRST_SHOWN, len(sheets.steps) - 1),
        tile=sheets.tile,
        properties=properties,
        categories=sorted({card["category"] for card in cards if card["category"]}),
        data=data,
    )
