"""Style of a report's figures: their colours, and SVG files that follow a browser's dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import Literal

import matplotlib
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

# The colours are Okabe and Ito's palette, which readers with common forms of colour blindness can
# distinguish.
PROBE_COLOR, DECODED_COLOR, CLEAN_COLOR = "#0072B2", "#D55E00", "#E69F00"
"""Colours of probes, and of labelers on the decoded latents and the predicted clean image."""

PROBE_LINE, DECODED_LINE, CLEAN_LINE, POSITION_LINE = "o-", "s--", "^:", "-"
"""Markers and dashes of the same curves, and of position alone, in Matplotlib's notation."""

OTHER_COLORS = ("#009E73", "#CC79A7", "#F0E442")
"""Colours of further curves, such as those of controls."""

SCORE_COLORMAP = "cividis"
"""Colour map of scores in heatmaps; it looks the same to readers with colour blindness."""

INK = "#101010"
"""Colour of text and frames on coloured cells, which look the same on light and dark pages."""

_SETTINGS = {
    # Store text as text, not as outlines, so that readers can select and search it.
    "svg.fonttype": "none",
    # With this salt, the elements of an SVG file get fixed identifiers instead of random ones.
    "svg.hashsalt": "ldmprobe",
}
IMAGE_DPI = 150
"""Resolution of embedded images, in pixels per inch of the figure."""

# Matplotlib writes colours as hexadecimal numbers into `style` attributes.  This table maps colours
# that suit a light page to colours of similar contrast on a dark page.
_DARK = {
    "#000000": "#e6e6e6",
    "#4c4c4c": "#b8b8b8",
    "#595959": "#a8a8a8",
    "#666666": "#9a9a9a",
    "#d9d9d9": "#3d3d3d",
    "#b0b0b0": "#6a6a6a",
    "#0072b2": "#4aa8e0",
}


def svg(figure: Figure, titles: Mapping[str, str] | None = None) -> bytes:
    """Encode a Matplotlib figure as SVG with a transparent background.

    Equal figures give equal bytes.

    Args:
        figure: figure to encode.
        titles: text that a browser shows while the mouse points at an element, by the element's
            name (`Artist.set_gid`).
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(
            buffer, format="svg", dpi=IMAGE_DPI, bbox_inches=_tight_box(figure), transparent=True,
            metadata={"Date": None, "Creator": None},
        )  # fmt: skip
    text = buffer.getvalue().decode().replace("<defs>", f"{_style()}<defs>", 1)
    titles = titles or {}

    def with_title(start: re.Match[str]) -> str:
        title = titles.get(start[1])
        return start[0] if title is None else f"{start[0]}<title>{escape(title)}</title>"

    return re.sub('<g id="([^"]*)">', with_title, text).encode()


def _tight_box(figure: Figure) -> Bbox | Literal["tight"]:
    """Return the box, in inches, to which ``bbox_inches="tight"`` would crop a figure.

    Matplotlib draws the whole figure once more to find it, with the resampling of every image.  In
    a figure without a layout engine, the box only depends on extents, which need no drawing.
    """
    if figure.get_layout_engine() is not None:
        return "tight"  # a layout engine moves axes while it draws
    resolution = figure.dpi
    figure.dpi = 72  # The unit of an SVG file is a point, which is 1/72 inch.
    try:
        renderer = RendererSVG(figure.bbox.width, figure.bbox.height, io.StringIO())
        box = figure.get_tightbbox(renderer)
        return box.padded(matplotlib.rcParams["savefig.pad_inches"])
    finally:
        figure.dpi = resolution


def _style() -> str:
    """Return the SVG style element, which sets the colours for a browser's dark mode."""
    rules = ["text { fill: #e6e6e6 }"]
    for light, dark in _DARK.items():
        for kind in ("fill", "stroke"):
            rules.append(f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }}')
    content = "\n".join(rules)
    return (
        "<style>\n:root { color-scheme: light dark }\n"
        "[id^='cell-'] { shape-rendering: crispEdges }\n"
        f"@media screen and (prefers-color-scheme: dark) {{\n{content}\n}}\n</style>\n "
    )


def step_ticks(steps: int) -> list[int]:
    """Return the numbers of the steps to label on the axis of a small plot.

    All steps are labelled if there are at most 8, otherwise step 1 and multiples of 5.
    """
    return [step for step in range(1, steps + 1) if steps <= 8 or step == 1 or step % 5 == 0]
