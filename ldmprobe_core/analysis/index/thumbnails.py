"""Small heatmaps of scores as SVG, to be placed inside a page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from matplotlib import colormaps
from matplotlib.colors import to_hex

from ldmprobe_core.analysis.report.style import SCORE_COLORMAP
from ldmprobe_core.study.layers import short_layer

_CELL = 10
"""Width and height of one square of the heatmap in the units of the figure."""


def heatmap_svg(
    means: Mapping[tuple[str, int], float], limits: tuple[float, float], metric: str
) -> str:
    """Draw mean scores by layer (rows, first layer at the top) and step (columns) as an SVG.

    Args:
        means: mean score by (layer, step); layers are drawn in this order.
        limits: scores of the first and of the last colour.
        metric: title of the metric, for the alternative text.
    """
    layers = list(dict.fromkeys(layer for layer, _ in means))
    steps = sorted({step for _, step in means})
    low, high = limits
    colors = colormaps[SCORE_COLORMAP]
    cells = []
    for (layer, step), mean in means.items():
        color = to_hex(colors((mean - low) / (high - low) if high > low else 1.0))
        x, y = steps.index(step) * _CELL, layers.index(layer) * _CELL
        title = escape(f"step {step}, {short_layer(layer)}: {mean:.2f}")
        cells.append(
            f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{color}">'
            f"<title>{title}</title></rect>"
        )
    best = max(means, key=lambda cell: means[cell])
    label = escape(
        f"{metric} by layer (rows) and step (columns), colours from {low:.2f} to {high:.2f}; "
        f"highest {means[best]:.2f} at step {best[1]} of {short_layer(best[0])}",
        quote=True,
    )
    width, height = len(steps) * _CELL, len(layers) * _CELL
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{label}" shape-rendering="crispEdges">{"".join(cells)}</svg>'
    )
