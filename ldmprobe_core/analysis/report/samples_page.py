"""Page of a report on which every test sample can be followed over the steps.

Each sample has one image file, a sheet of tiles.  Its columns are the steps with step images and
the final image; its rows are the images and each property's probe maps and labeler maps.  The page
shows one step's column of all sheets at a time.  It works from a folder, without a server.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from PIL import Image

from ldmprobe_core.analysis.controls.wording import metric_title
from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.stored_probes import SampleMaps
from ldmprobe_core.pipeline.groups import STEP_IMAGES, samples_in
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.layers import short_layer
from ldmprobe_core.study.properties import property_of

TILE = 64
"""Largest width and height of a tile in pixels; larger images are reduced by averaging."""
_FIRST_SHOWN = 2
"""Index of the column that the page shows first; it is step 3 if all steps have images."""
MAP_BYTES = 64 << 20
"""Largest number of bytes of one property's float64 maps, or tiles, in memory at once."""
_GREY = (0.6, 0.6, 0.6, 1.0)
"""Colour (RGBA) of pixels without a measured label."""


def write_samples_page(run: Run, maps: SampleMaps, summary: Summary) -> int:
    """Write ``report/samples.html``, and an image sheet for each test sample with step images.

    Args:
        run: finished run.
        maps: maps of the run's samples.
        summary: summary of the run.

    Returns:
        number of samples on the page; the page is not written if there are none.
    """
    with_images = samples_in(run, STEP_IMAGES)
    rows = [row for row, i in enumerate(with_images) if run.samples[int(i)].split == "test"]
    if not rows:
        return 0
    sheets = _Sheets(run, maps, summary)
    cards = []
    for start in range(0, len(rows), sheets.at_once):
        members = rows[start : start + sheets.at_once]
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
        at_once: number of samples whose tiles are in memory at once.
    """

    def __init__(self, run: Run, maps: SampleMaps, summary: Summary) -> None:
        self.run, self.maps, self.summary = run, maps, summary
        self.steps = maps.steps
        height, width = maps.labels.maps[next(iter(summary.properties))].shape[1:]
        self.reduction = max(1, math.ceil(max(height, width) / TILE))
        self.tile = (width // self.reduction, height // self.reduction)
        columns = len(self.steps) + 1
        self.at_once = max(1, MAP_BYTES // (columns * math.prod(self.tile) * 8))
        self._read_at_once = max(1, MAP_BYTES // (columns * height * width * 8))
        self.scores: dict[str, np.ndarray] = {}
        for prop, result in summary.properties.items():
            best, group = result.best, f"scores/{prop}"
            cell = {"metric": best.metric, "kind": best.kind, "layer": best.layer}
            place = {name: _index(run, group, name, value) for name, value in cell.items()}
            probe = _index(run, group, "condition", "probe")
            self.scores[prop] = run.read(group, "score", condition=probe, **place)
            if result.undefined.constant is not None:
                self.scores[prop] = np.full_like(self.scores[prop], np.nan)

    def scores_of(self, prop: str, index: int) -> list[float | None]:
        """Return a sample's scores at the displayed steps, rounded; None where undefined."""
        column = np.searchsorted(self.maps.labels.heldout, index)
        values = self.scores[prop][[step - 1 for step in self.steps], column]
        return [round(float(v), 3) if np.isfinite(v) else None for v in values]

    def draw(self, rows: list[int], indices: list[int]) -> list[bytes]:
        """Draw the sheets of the given samples, as WebP files.

        Args:
            rows: rows of the samples in the groups of step images.
            indices: indices of the same samples in the run.
        """
        lines = [self._images(rows, indices)]
        for prop in self.summary.properties:
            drawn = self._map_tiles(prop, rows, indices)
            lines += [_colored(prop, tiles, drawn.limits) for tiles in (drawn.probes, drawn.labels)]
        return [_encoded([line[i] for line in lines]) for i in range(len(rows))]

    def _images(self, rows: list[int], indices: list[int]) -> np.ndarray:
        """Read step images and final images as tiles, (sample, column, y, x, rgb)."""
        parts = []
        for part in self._parts(rows):
            steps = self.run.read(STEP_IMAGES, "trajectory", sample=rows[part])
            final = self.run.read("images", "image", sample=indices[part])[:, None]
            parts.append(np.concatenate([self._tiles(steps), self._tiles(final)], axis=1))
        return np.concatenate(parts)

    def _map_tiles(self, prop: str, rows: list[int], indices: list[int]) -> _MapTiles:
        """Compute the maps of probes and labelers of samples as tiles."""
        size = self.tile[1], self.tile[0]
        truth, labels, limits = self.maps.labels.maps[prop], [], []
        for part in self._parts(rows):
            final = truth[indices[part]]
            shown = self.maps.of_labeler(prop, rows[part], self.steps)
            reduced = self._reduced(shown), self._reduced(final[:, None])
            labels.append(np.concatenate(reduced, axis=1))
            limits += [(np.nanmin(one), np.nanmax(one)) for one in final]
        of_labeler = np.concatenate(labels)
        of_probes = self.maps.of_probes(prop, indices, self.steps, size)
        of_probes = np.concatenate([of_probes, of_labeler[:, -1:]], 1)
        return _MapTiles(of_probes, of_labeler, limits)

    def _parts(self, rows: list[int]) -> Iterator[slice]:
        """Yield slices of samples whose full-size maps of all steps are in memory at once."""
        for start in range(0, len(rows), self._read_at_once):
            yield slice(start, start + self._read_at_once)

    def _reduced(self, maps: np.ndarray) -> np.ndarray:
        """Shrink maps (sample, column, y, x) to the size of tiles by means of measured pixels.

        The result is float64.
        """
        if self.reduction == 1:
            return maps.astype(np.float64)
        (width, height), k = self.tile, self.reduction
        cut = maps[..., : height * k, : width * k].reshape(-1, height * k, width * k)
        return block_means(cut, (height, width)).reshape(*maps.shape[:2], height, width)

    def _tiles(self, images: np.ndarray) -> np.ndarray:
        """Shrink images (sample, column, y, x, rgb) uint8 to the size of tiles by block means."""
        (width, height), k = self.tile, self.reduction
        if k == 1:
            return images
        cut = images[:, :, : height * k, : width * k].reshape(-1, height, k, width * k * 3)
        # Sum the rows of a block first: NumPy adds whole rows much faster than small blocks.
        rows = cut.sum(2, dtype=np.uint32).reshape(-1, height, width, k, 3)
        means = np.rint(rows.sum(3, dtype=np.float64) / k**2).astype(np.uint8)
        return means.reshape(*images.shape[:2], height, width, 3)


@dataclass(frozen=True)
class _MapTiles:
    """Maps of a property in the size of tiles, with the label of the final image as last column.

    Attributes:
        probes, labels: maps of probes and of the labeler, (sample, column, y, x) float64.
        limits: lowest and highest value of each sample's label.
    """

    probes: np.ndarray
    labels: np.ndarray
    limits: list[tuple[float, float]]


def _encoded(lines: list[np.ndarray]) -> bytes:
    """Encode one sample's tiles, (column, y, x, rgb) uint8 for each row, as a WebP file."""
    pixels = np.concatenate([np.concatenate(list(line), axis=1) for line in lines])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "webp", quality=80, method=2)
    return buffer.getvalue()


def _index(run: Run, group: str, name: str, value: str) -> int:
    """Return the index of a text along the coordinate ``name`` of a group."""
    return [str(one) for one in run.read(group, name)].index(value)


def _colored(prop: str, maps: np.ndarray, limits: list[tuple[float, float]]) -> np.ndarray:
    """Convert a property's maps (sample, column, y, x) to RGB images of dtype uint8.

    The colours span the property's fixed limits, or the value range of the sample's label if the
    property has no limits.
    """
    drawing = property_of(prop).drawing
    colors = colormaps[drawing.colormap].with_extremes(bad=_GREY)
    colored = np.empty((*maps.shape, 3), np.uint8)
    for out, values, ends in zip(colored, maps, limits, strict=True):
        scale = Normalize(*(drawing.limits or ends), clip=True)
        out[:] = colors(scale(np.ma.masked_invalid(values)), bytes=True)[..., :3]
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
