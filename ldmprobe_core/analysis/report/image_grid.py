"""Grids of images drawn as a single picture, for figures that show many images.

Matplotlib needs about 20 ms for each axes, so a figure of a hundred images in axes of their own
would take seconds.  Here the images are put together as an array first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from ldmprobe_core.analysis.report.style import IMAGE_DPI

_GAP = 0.05
"""Distance between two images, as a fraction of an image's width."""


def colored(image: np.ndarray, cmap: str | Colormap, low: float, high: float) -> np.ndarray:
    """Colour a map, (y, x) to (y, x, rgb) uint8; values beyond the range get the end colours.

    Args:
        image: values, NaN where undefined.
        cmap: colour map or its name; its colour of undefined values is used for NaN.
        low, high: values of the first and the last colour.
    """
    colors = colormaps[cmap] if isinstance(cmap, str) else cmap
    values = Normalize(low, high)(np.ma.masked_invalid(image.astype(float)))
    return np.asarray(colors(values, bytes=True)[..., :3])


def tiles(rows: Sequence[Sequence[np.ndarray]], width: int) -> np.ndarray:
    """Join images into a grid, with transparent gaps between them.

    Args:
        rows: images (y, x, rgb) uint8 of each row, of one shape up to a factor.
        width: width in pixels to which every image is resized, by repeating or skipping pixels.

    Returns:
        (y, x, rgba) uint8.
    """
    first = rows[0][0]
    height, gap = max(1, round(width * first.shape[0] / first.shape[1])), round(_GAP * width)
    columns = max(map(len, rows))
    size = len(rows) * (height + gap) - gap, columns * (width + gap) - gap
    canvas = np.zeros((*size, 4), np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            down = (np.arange(height) + 0.5) * len(image) / height
            across = (np.arange(width) + 0.5) * image.shape[1] / width
            y, x = i * (height + gap), j * (width + gap)
            canvas[y : y + height, x : x + width, :3] = image[
                down.astype(int)[:, None], across.astype(int)
            ]
            canvas[y : y + height, x : x + width, 3] = 255
    return canvas


def draw_image_grid(
    axes: Axes,
    rows: Sequence[Sequence[np.ndarray]],
    width: int,
    titles: Sequence[str] = (),
    names: Sequence[str] = (),
    **text: Any,
) -> None:
    """Draw a grid of images into Matplotlib axes, without ticks and frames.

    Args:
        axes: axes to draw into.
        rows: images (y, x, rgb) uint8 of each row.
        width: width of an image in pixels.
        titles: text above each column.
        names: text to the left of each row.
        text: properties of the texts, such as ``fontsize``.
    """
    canvas = tiles(rows, width)
    axes.imshow(canvas, interpolation="nearest", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    axes.set_axis_off()
    step_x = (canvas.shape[1] + round(_GAP * width)) / max(map(len, rows))
    step_y = (canvas.shape[0] + round(_GAP * width)) / len(rows)
    for j, title in enumerate(titles):
        axes.text(j * step_x + width / 2, -4, title, ha="center", va="bottom", **text)
    for i, name in enumerate(names):
        axes.text(-6, (i + 0.48) * step_y, name, ha="right", va="center", **text)


def image_grid(
    rows: Sequence[Sequence[np.ndarray]],
    width: float,
    titles: Sequence[str] = (),
    names: Sequence[str] = (),
    **text: Any,
) -> Figure:
    """Draw a figure that consists of a grid of images.

    Args:
        rows, titles, names, text: as in `draw_image_grid`.
        width: width of an image in inches.
    """
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    draw_image_grid(axes, rows, round(width * IMAGE_DPI), titles, names, **text)
    height, across = axes.images[0].get_size()
    figure.set_size_inches(across / IMAGE_DPI, height / IMAGE_DPI)
    return figure
