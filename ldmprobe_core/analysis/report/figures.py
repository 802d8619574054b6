"""Figures of a report, in colours that readers with colour blindness can distinguish."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ldmprobe_core.analysis.controls.wording import control_title
from ldmprobe_core.analysis.curves import Curves
from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report.image_grid import colored, draw_image_grid, image_grid
from ldmprobe_core.analysis.report.style import (
    CLEAN_COLOR,
    CLEAN_LINE,
    DECODED_COLOR,
    DECODED_LINE,
    OTHER_COLORS,
    POSITION_LINE,
    PROBE_COLOR,
    PROBE_LINE,
    SCORE_COLORMAP,
)
from ldmprobe_core.analysis.report.text import metric_title
from ldmprobe_core.analysis.run_analysis import RunAnalysis
from ldmprobe_core.analysis.stored_probes import SampleMaps
from ldmprobe_core.pipeline.groups import STEP_IMAGES, samples_in
from ldmprobe_core.storage.run import SOURCES, Run
from ldmprobe_core.study.layers import LATENTS, short_layer
from ldmprobe_core.study.properties import property_of

_NOT_MEASURED = "0.6"
"""Grey level of pixels that were not measured; no pixel of a mask is drawn in it."""

_THUMBNAIL = 96
"""Width in pixels of the step images above the class probabilities."""

MOST_TICKS = 15
"""Largest number of steps whose log signal-to-noise ratio is written above a plot."""

_LABELS = {"trajectory": "labeler, decoded latents", "clean": "labeler, predicted clean image"}


def step_image_rows(run: Run, samples: list[int]) -> list[int]:
    """Find the indices of samples along the sample dimension of the stored step images."""
    return [int(row) for row in np.searchsorted(samples_in(run, STEP_IMAGES), samples)]


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
    corner = best.step - 0.5, layers.index(best.layer) - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=2.5))
    return figure, titles


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
        reading = " A control that is as bright as the probe would explain its score."
    if curves.partial_cells is not None:
        scale = "another" if shown else "their own colour scale"
        shown.append(f"partial scores of probes (position regressed out) in {scale}")
    return f"The same cells of {prop}: {', and '.join(shown)}.", reading


def step_ticks(steps: int) -> list[int]:
    """Return the numbers of the steps to label on the axis of a small plot.

    All steps are labelled if there are at most 8, otherwise step 1 and multiples of 5.
    """
    return [step for step in range(1, steps + 1) if steps <= 8 or step == 1 or step % 5 == 0]


def heatmap_caption(prop: str, curves: Curves, layers: list[str], summary: Summary) -> str:
    """Write a heatmap's caption, including the ranges of scores over layers and over steps."""
    best = summary.properties[prop].best
    text = (
        f"Where {prop} can be read: mean {metric_title(best.metric)} of the {curves.kind} probe of "
        f"each step and layer on test samples. The frame marks the best cell, step {best.step} of "
        f"{short_layer(best.layer)}, chosen on validation samples. Above the colour bar: position "
        "alone, also a line in the bar where it lies in its range, and the ceiling, the best that "
        "one value a token can reach on the layers' token grids."
    )
    cells = np.where(np.isfinite(curves.cells), curves.cells, np.nan)
    over_layers, over_steps = cells[best.step - 1], cells[:, layers.index(best.layer)]
    if not (np.isfinite(over_layers).sum() > 1 and np.isfinite(over_steps).sum() > 1):
        return text
    among, along = (float(np.nanmax(v) - np.nanmin(v)) for v in (over_layers, over_steps))
    return (
        f"{text} At that step the means of layers differ by up to {among:.2f}, in that layer those "
        f"of steps by up to {along:.2f}."
    )


def curves_caption(prop: str, curves: Curves, metric: str) -> str:
    """Write a curve figure's caption, with the steps at which the labelers pass the probes."""
    text = (
        f"How early {prop} can be read: {metric_title(metric)} of one layer's probes, of the "
        "labeler on the step images, and of the controls, over the steps."
    )
    steps, samples = curves.decoded_steps, curves.decoded
    probe = curves.probe[steps - 1][:, samples].mean(1)
    for source, title in (("trajectory", "decoded latents"), ("clean", "predicted clean image")):
        labeler = curves.sources[source][steps - 1][:, samples].mean(1)
        # Skip a labeler that does not exist or has undefined scores.
        if not np.isfinite(labeler - probe).all():
            continue
        if passes := _passes(labeler > probe, steps, len(curves.probe)):
            text += f" On the {title}, the labeler's mean {passes}."
    return text


def _passes(above: np.ndarray, steps: np.ndarray, total: int) -> str:
    """Say when a labeler's curve passes the probes' curve; empty if it does so more than once.

    Between two steps with images the labeler's curve is not known, so neither is the step.

    Args:
        above: whether it is above at each step with images, (step,) bool.
        steps: numbers of these steps, ascending.
        total: number of all steps.
    """
    first = int(above.argmax())
    if not above.any():
        some = "" if len(steps) == total else " at a step with images"
        return f"never passes the probes'{some}"
    if not above[first:].all():
        return ""
    if not first:
        known = "" if steps[0] == 1 else ", the first with images"
        return f"is above the probes' from step {steps[0]} on{known}"
    before, at = steps[first - 1], steps[first]
    if at == before + 1:
        return f"passes the probes' at step {at}"
    return f"passes the probes' after step {before}, at step {at} at the latest"


def curves_figure(prop: str, analysis: RunAnalysis) -> Figure:
    """Draw the scores of probes, image labelers and controls over steps, with intervals."""
    curves, bootstrap = analysis.curves[prop], analysis.bootstrap
    best = analysis.summary.properties[prop].best
    figure = Figure(figsize=(5.4, 3.4))
    axes = figure.subplots()
    steps = np.arange(1, len(curves.probe) + 1)

    def line(values: np.ndarray, label: str, color: str, style: str) -> None:
        intervals = [bootstrap.interval(row) for row in values]
        low = [np.nan if i.low is None else i.low for i in intervals]
        high = [np.nan if i.high is None else i.high for i in intervals]
        mean = [np.nan if i.mean is None else i.mean for i in intervals]
        axes.plot(steps, mean, style, color=color, label=label, markersize=4)
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)

    line(curves.probe, f"probe, {short_layer(curves.layer.name)}", PROBE_COLOR, PROBE_LINE)
    line(curves.sources["trajectory"], _LABELS["trajectory"], DECODED_COLOR, DECODED_LINE)
    line(curves.sources["clean"], _LABELS["clean"], CLEAN_COLOR, CLEAN_LINE)
    for (name, values), color in zip(curves.conditions.items(), cycle(OTHER_COLORS), strict=False):
        line(values, control_title(name), color, ":")
    if LATENTS in curves.inputs:
        line(curves.inputs[LATENTS], "probe on the latents alone", "#000000", "-.")
    position = bootstrap.interval(curves.position)
    if position.mean is not None:
        axes.axhline(
            position.mean, color="0.35", linestyle=POSITION_LINE, linewidth=1,
            label="position alone",
        )  # fmt: skip
    if position.low is not None and position.high is not None:
        axes.axhspan(position.low, position.high, color="0.35", alpha=0.12, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel(metric_title(best.metric))
    axes.set_xticks(steps)
    axes.set_title(f"{prop}: score over steps", fontsize=10)
    add_log_snr(axes, analysis.summary.log_snr)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    axes.grid(alpha=0.25)
    return figure


def add_log_snr(axes: Axes, values: list[float | None]) -> None:
    """Add an axis above a plot over steps, with the log signal-to-noise ratio of some steps.

    Args:
        axes: axes whose x values are steps, from 1.
        values: result of `models.timesteps.log_snr`; empty adds no axis.
    """
    every = -(-len(values) // MOST_TICKS)
    ticks = [
        (step, f"{value:.1f}")
        for step, value in enumerate(values, start=1)
        if value is not None and (step - 1) % every == 0
    ]
    if ticks:
        above = axes.secondary_xaxis("top")
        above.set_xticks(*zip(*ticks, strict=True), fontsize=7)
        above.set_xlabel("log SNR of the latents before the step", fontsize=7)


def shown_steps(decoded: list[int]) -> list[int]:
    """Return the sampler steps that the step-by-step figure of a sample shows.

    Most are early steps, because properties emerge there, and the last step is always included.

    Args:
        decoded: steps (from 1) with step images, ascending.
    """
    candidates = {1, 2, 3, 5, 8, 10, 12, 15, decoded[-1]}
    return [step for step in decoded if step in candidates]


def sample_rows(
    run: Run, maps: SampleMaps, properties: Iterable[str], samples: list[int], steps: list[int]
) -> list[dict[str, list[np.ndarray]]]:
    """Read each sample's images at each step, and the property maps of probes and labelers.

    Args:
        run: finished run.
        maps: maps of the run's samples.
        properties: names of the properties to read.
        samples: indices of held-out samples with step images.
        steps: steps to read, counted from 1, which have step images.

    Returns:
        for each sample the row ``decoded latents``, and the rows ``probe PROPERTY`` and ``labeler
        PROPERTY`` of each property.  A row has an image (y, x, rgb) uint8 for each step, and then
        the final image or its label map.
    """
    rows, columns = step_image_rows(run, samples), [maps.steps.index(step) for step in steps]
    images = run.read(STEP_IMAGES, "trajectory", sample=rows, step=columns)
    finals = run.read("images", "image", sample=samples)
    pictures = [{"decoded latents": [*images[i], finals[i]]} for i in range(len(samples))]
    for prop in properties:
        drawing = property_of(prop).drawing
        colors = colormaps[drawing.colormap].with_extremes(bad=_NOT_MEASURED)
        sources = {
            "probe": maps.of_probes(prop, samples, steps),
            "labeler": maps.of_labeler(prop, rows, steps).astype(float),
        }
        for i, sample in enumerate(samples):
            truth = maps.labels.maps[prop][sample].astype(float)
            low, high = drawing.limits or (np.nanmin(truth), np.nanmax(truth))
            for name, shown in sources.items():
                pictures[i][f"{name} {prop}"] = [
                    colored(one, colors, low, high) for one in [*shown[i], truth]
                ]
    return pictures


def sample_grid(rows: dict[str, list[np.ndarray]], steps: list[int]) -> Figure:
    """Draw the rows of a sample (`sample_rows`), with a column for each step and the final image.

    The layout follows figure 4 of the capstone poster (`published.POSTER`).
    """
    titles = [*(f"step {step}" for step in steps), "final image\nand labels"]
    return image_grid(list(rows.values()), 0.96, titles, list(rows), fontsize=8)


def class_figure(run: Run, sample: int, target: int, from_step: float) -> Figure:
    """Draw the class probabilities of one sample over steps, below thumbnails of its step images.

    Args:
        run: run with class labels.
        sample: index of the sample.
        target: index of the target class; -1 if the sample has none.
        from_step: step from which the target class has the highest probability up to the last
            step; NaN if another class has it at the last step.
    """
    names = [str(name) for name in run.open("labels")["class"].values]
    row, steps = step_image_rows(run, [sample])[0], run.read(STEP_IMAGES, "step")
    scores = {s: run.read(f"labels_{s}", "class_score", sample=row) for s in SOURCES}
    decoded = scores["trajectory"]
    # The class that leads at the last step is drawn, although others may have had larger values.
    ranked = map(int, np.argsort(-decoded.max(0)))
    first = [target] if target >= 0 else []
    top = list(dict.fromkeys([*first, int(decoded[-1].argmax()), *ranked]))[:4]
    step_images = run.read(STEP_IMAGES, "trajectory", sample=row)
    columns = np.unique(np.linspace(0, len(steps) - 1, min(8, len(steps))).round().astype(int))
    figure = Figure(figsize=(6.4, 3.4))
    strip, axes = figure.subplots(2, height_ratios=(1, 2.4), gridspec_kw={"hspace": 0.12})
    titles = [f"step {steps[i]}" for i in columns]
    draw_image_grid(strip, [[step_images[i] for i in columns]], _THUMBNAIL, titles, fontsize=7)
    colors = (PROBE_COLOR, DECODED_COLOR, *OTHER_COLORS[:2])
    for index, color in zip(top, colors, strict=False):
        axes.plot(steps, decoded[:, index], "o-", color=color, markersize=3, label=names[index])
    clean = scores["clean"][:, top[0]]
    axes.plot(
        steps, clean, "--", color=PROBE_COLOR, label=f"{names[top[0]]}, predicted clean image"
    )
    if np.isfinite(from_step):
        axes.axvline(from_step, color="0.4", linewidth=1, linestyle=":")
    axes.set_xlabel("step")
    axes.set_ylabel("probability")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks(steps)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    axes.grid(alpha=0.25)
    return figure
