"""Heatmaps of a property's scores, step by layer, with their captions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ldmprobe_core.analysis.controls.wording import control_title, metric_title
from ldmprobe_core.analysis.curves import Curves
from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report.style import SCORE_COLORMAP, step_ticks
from ldmprobe_core.analysis.report.text import unmeasured_clause
from ldmprobe_core.study.layers import short_layer


def color_range(curves: Curves) -> tuple[float, float]:
    """Return the lowest and highest score of probes and controls over all layers and steps.

    Partial scores are of another metric, and begin near 0.
    """
    values = np.concatenate([curves.cells, *curves.other_cells.values()]).ravel()
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)


def heatmap(
    prop: str, curves: Curves, layers: list[str], summary: Summary
) -> tuple[Figure, dict[str, str]]:
    """Draw a heatmap of mean scores, step by layer, with a frame around the best cell.

    The colour bar names position alone, and the ceilings of the layers' token grids.

    Returns:
        the figure, and the text that describes each cell, by the name of its element.
    """
    result = summary.properties[prop]
    best, steps = result.best, curves.cells.shape[0]
    figure = Figure(figsize=(2.0 + 0.3 * steps, 1.1 + 0.26 * len(layers)))
    axes = figure.subplots()
    scale = ScalarMappable(Normalize(*color_range(curves)), SCORE_COLORMAP)
    titles = {}
    for (step, layer), value in np.ndenumerate(curves.cells):
        if np.isfinite(value):
            cell = Rectangle(
                (step + 0.5, layer - 0.5), 1, 1, linewidth=0, color=scale.to_rgba(value)
            )
            cell.set_gid(name := f"cell-{step + 1}-{layer}")
            axes.add_patch(cell)
            titles[name] = f"step {step + 1}, {layers[layer]}: {value:.3f}"
    axes.set_xlim(0.5, steps + 0.5)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xticks(range(1, steps + 1))
    axes.set_yticks(range(len(layers)), [short_layer(name) for name in layers], fontsize=8)
    axes.set_xlabel("step")
    axes.set_title(f"{prop}, {curves.kind} probes", fontsize=10)
    bar = figure.colorbar(scale, ax=axes, pad=0.02, label=metric_title(best.metric))
    _name_bounds(bar.ax, curves, [v for v in result.ceilings.values() if v is not None])
    if not unmeasured_clause(result, summary.samples["test"]):
        corner = best.step - 0.5, layers.index(best.layer) - 0.5
        frame = Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=2.5)
        frame.set_gid("best-cell")
        axes.add_patch(frame)
    return figure, titles


def heatmap_text(prop: str, summary: Summary) -> str:
    """Describe a heatmap in one sentence, with its best cell if anything is measured."""
    result = summary.properties[prop]
    text = f"Heatmap of {prop} scores, step by layer"
    if unmeasured_clause(result, summary.samples["test"]):
        return f"{text}; nothing is measured."
    return f"{text}; best at step {result.best.step}, {result.best.layer}."


def _name_bounds(bar: Axes, curves: Curves, ceilings: list[float]) -> None:
    """Mark the position baseline's score on a colour bar, and write this score above the bar.

    The text above the bar also gives the range of the score ceilings.
    """
    low, high = color_range(curves)
    lines = []
    if ceilings:
        ends = sorted({f"{min(ceilings):.2f}", f"{max(ceilings):.2f}"})
        lines.append(f"ceiling {' to '.join(ends)}")
    if np.isfinite(curves.position).any():
        position = float(np.nanmean(curves.position))
        lines.append(f"position {position:.2f}")
        if low < position < high:
            bar.axhline(position, color="white", linewidth=2.5)
    bar.set_title("\n".join(lines), fontsize=7, loc="left")


def other_heatmaps(curves: Curves, layers: list[str]) -> Figure:
    """Draw heatmaps of the controls, in the colour scale of `heatmap`, and of partial scores."""
    steps, shown = len(curves.cells), dict(curves.other_cells)
    if curves.partial_cells is not None:
        shown["partial score"] = curves.partial_cells
    figure = Figure(figsize=(1.4 + 2.9 * len(shown), 0.9 + 0.2 * len(layers)))
    panels = figure.subplots(
        1, len(shown), squeeze=False, sharey=True, gridspec_kw={"wspace": 0.35}
    )[0]  # fmt: skip
    for panel, (name, cells) in zip(panels, shown.items(), strict=True):
        low, high = color_range(curves) if name in curves.other_cells else (None, None)
        image = panel.imshow(
            cells.T, cmap=SCORE_COLORMAP, vmin=low, vmax=high, aspect="auto",
            extent=(0.5, steps + 0.5, len(layers) - 0.5, -0.5), interpolation="nearest",
        )  # fmt: skip
        panel.set_title(control_title(name), fontsize=8)
        panel.set_xlabel("step", fontsize=8)
        panel.set_xticks(step_ticks(steps))
        panel.tick_params(labelsize=7)
        figure.colorbar(image, ax=panel, pad=0.02, fraction=0.05).ax.tick_params(labelsize=7)
    panels[0].set_yticks(range(len(layers)), [short_layer(name) for name in layers], fontsize=7)
    return figure


def other_heatmaps_text(prop: str, curves: Curves) -> tuple[str, str]:
    """Describe the figure of `other_heatmaps`: what it shows, and how to read its controls."""
    shown, reading = [], ""
    if curves.other_cells:
        shown.append("controls in the colour scale of the heatmap above")
        reading = " A control that is as bright as the probe could explain its score."
    if curves.partial_cells is not None:
        scale = "another" if shown else "their own colour scale"
        shown.append(f"partial scores of probes (position regressed out) in {scale}")
    return f"The same cells of {prop}: {', and '.join(shown)}.", reading


def heatmap_caption(prop: str, curves: Curves, layers: list[str], summary: Summary) -> str:
    """Write a heatmap's caption, including the ranges of scores over layers and over steps."""
    result = summary.properties[prop]
    best, samples = result.best, summary.samples["test"]
    text = (
        f"Where {prop} can be read: mean {metric_title(best.metric)} of the {curves.kind} probe of "
        "each step and layer on test samples. "
    )
    if clause := unmeasured_clause(result, samples):
        return f"{text}No cell has a frame: {clause}."
    chosen = "which validation samples choose; another one can be brighter here"
    if result.undefined.unchosen:
        chosen = "which is the first one, as no validation score is defined to choose by"
    text += (
        f"The frame marks the best cell, step {best.step} of {short_layer(best.layer)}, {chosen}. "
        "Numbers above the colour bar: the ceiling, which is the best that one value a token can "
        "reach on the layers' token grids, and position alone, which is a line in the bar too if "
        "it lies in its range."
    )
    cells = np.where(np.isfinite(curves.cells), curves.cells, np.nan)
    over_layers, over_steps = cells[best.step - 1], cells[:, layers.index(best.layer)]
    if not (np.isfinite(over_layers).sum() > 1 and np.isfinite(over_steps).sum() > 1):
        return text
    among, along = (float(np.nanmax(v) - np.nanmin(v)) for v in (over_layers, over_steps))
    return (
        f"{text} At step {best.step}, layers differ by up to {among:.2f}; in this layer, steps "
        f"differ by up to {along:.2f}."
    )
