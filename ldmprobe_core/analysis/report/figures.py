"""Figures of a report, in colours that readers with colour blindness can distinguish."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ldmprobe_core.analysis.curves import Curves
from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report.image_grid import colored, draw_image_grid, image_grid
from ldmprobe_core.analysis.report.style import (
    CLEAN_COLOR,
    DECODED_COLOR,
    OTHER_COLORS,
    PROBE_COLOR,
)
from ldmprobe_core.analysis.report.text import control_title, metric_title, short_layer
from ldmprobe_core.analysis.summarize import RunAnalysis
from ldmprobe_core.pipeline.groups import STEP_IMAGES, samples_in
from ldmprobe_core.pipeline.labels import as_label
from ldmprobe_core.probing.block_scores import upsample
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.storage.run import SOURCES, Run
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.properties import property_of

_NOT_MEASURED = "0.6"
"""Grey level of pixels that were not measured; no pixel of a mask is drawn in it."""

_THUMBNAIL = 96
"""Width in pixels of the step images above the class probabilities."""

MOST_TICKS = 15
"""Largest number of steps whose log signal-to-noise ratio is written above a plot."""

_LABELS = {"trajectory": "labeler, decoded latents", "clean": "labeler, predicted clean image"}


def step_image_rows(run: Run, samples: list[int]) -> list[int]:
    """Find the rows of samples, which have step images, in the groups of step images."""
    return [int(row) for row in np.searchsorted(samples_in(run, STEP_IMAGES), samples)]


def heatmap(
    prop: str, curves: Curves, layers: list[str], summary: Summary
) -> tuple[Figure, dict[str, str]]:
    """Draw the mean score of every cell, step by layer, with a frame around the best cell.

    Returns:
        the figure, and the text that describes each cell, by the name of its element.
    """
    best = summary.properties[prop].best
    steps = curves.cells.shape[0]
    figure = Figure(figsize=(2.0 + 0.3 * steps, 1.1 + 0.26 * len(layers)))
    axes = figure.subplots()
    scale = ScalarMappable(cmap="cividis")
    scale.set_array(curves.cells[np.isfinite(curves.cells)])
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
    metric = metric_title(best.metric)
    axes.set_title(f"{prop}, {curves.kind} probes", fontsize=10)
    bar = figure.colorbar(scale, ax=axes, pad=0.02, label=metric)
    position = float(np.nanmean(curves.position)) if np.isfinite(curves.position).any() else np.nan
    if titles and np.nanmin(curves.cells) < position < np.nanmax(curves.cells):
        bar.ax.axhline(position, color="white", linewidth=2.5)
    corner = best.step - 0.5, layers.index(best.layer) - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=2.5))
    return figure, titles


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

    line(curves.probe, f"probe, {short_layer(curves.layer.name)}", PROBE_COLOR, "o-")
    for source, color in (("trajectory", DECODED_COLOR), ("clean", CLEAN_COLOR)):
        line(curves.sources[source], _LABELS[source], color, "s--")
    for (name, values), color in zip(curves.conditions.items(), cycle(OTHER_COLORS), strict=False):
        line(values, control_title(name), color, ":")
    if LATENTS in curves.inputs:
        line(curves.inputs[LATENTS], "probe on the latents alone", "#000000", "-.")
    position = bootstrap.interval(curves.position)
    if position.mean is not None and position.low is not None and position.high is not None:
        axes.axhline(position.mean, color="0.35", linewidth=1, label="position alone")
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


def sample_grid(
    run: Run, labels: LabelSet, summary: Summary, sample: int, steps: list[int]
) -> Figure:
    """Draw one sample step by step, with the maps of every property by the probe and the labeler.

    The columns are steps, and the last column shows the final image and its labels.  The first row
    shows the decoded latents.  The layout follows figure 4 of the capstone poster
    (`published.POSTER`).

    Args:
        run: finished run.
        labels: label set of the run.
        summary: summary of the run; the probes drawn are those of each property's best layer.
        sample: index of a held-out sample with step images.
        steps: steps to draw, counted from 1, which have step images.
    """
    row = step_image_rows(run, [sample])[0]
    stored = np.searchsorted(run.read(STEP_IMAGES, "step"), steps)
    images = list(run.read(STEP_IMAGES, "trajectory", sample=row)[stored])
    rows = {"decoded latents": [*images, run.read("images", "image", sample=sample)]}
    for prop, result in summary.properties.items():
        truth = labels.maps[prop][sample].astype(float)
        record = property_of(prop)
        low, high = record.drawing.limits or (np.nanmin(truth), np.nanmax(truth))
        colors = colormaps[record.drawing.colormap].with_extremes(bad=_NOT_MEASURED)
        best = result.best
        probes = run.open(f"probes/{best.layer}").sel(property=prop, kind=best.kind).load()
        maps = []
        for column in (step - 1 for step in steps):
            tokens = run.read(f"activations/{best.layer}", "activation", sample=sample, step=column)
            probe = LinearProbe.from_dataset(probes.isel(step=column))
            predicted = probe.predict(tokens[None])[0]
            if record.is_mask:
                predicted = predicted > probe.cut
            maps.append(upsample(predicted[None], truth.shape)[0].astype(float))
        step_maps = run.read("labels_trajectory", prop, sample=row)[stored].astype(float)
        step_maps = as_label(run.study, prop, step_maps).astype(float)
        for name, shown in (("probe", maps), ("labeler", step_maps)):
            rows[f"{name} {prop}"] = [colored(one, colors, low, high) for one in [*shown, truth]]
    titles = [*(f"step {step}" for step in steps), "final image\nand labels"]
    return image_grid(list(rows.values()), 0.96, titles, list(rows), fontsize=8)


def class_figure(run: Run, sample: int, target: int, from_step: float) -> Figure:
    """Draw the class probabilities of one sample over steps, below thumbnails of its step images.

    Args:
        run: run with class labels.
        sample: index of the sample.
        target: index of the target class.
        from_step: step from which the target class has the highest probability up to the last
            step; NaN if another class has it at the last step.
    """
    names = [str(name) for name in run.open("labels")["class"].values]
    row, steps = step_image_rows(run, [sample])[0], run.read(STEP_IMAGES, "step")
    scores = {s: run.read(f"labels_{s}", "class_score", sample=row) for s in SOURCES}
    decoded = scores["trajectory"]
    top = [target, *(int(i) for i in np.argsort(-decoded.max(0)) if i != target)][:4]
    step_images = run.read(STEP_IMAGES, "trajectory", sample=row)
    columns = np.unique(np.linspace(0, len(steps) - 1, min(8, len(steps))).round().astype(int))
    figure = Figure(figsize=(6.4, 3.4))
    strip, axes = figure.subplots(2, height_ratios=(1, 2.4), gridspec_kw={"hspace": 0.12})
    titles = [f"step {steps[i]}" for i in columns]
    draw_image_grid(strip, [[step_images[i] for i in columns]], _THUMBNAIL, titles, fontsize=7)
    colors = (PROBE_COLOR, DECODED_COLOR, *OTHER_COLORS[:2])
    for index, color in zip(top, colors, strict=False):
        axes.plot(steps, decoded[:, index], "o-", color=color, markersize=3, label=names[index])
    clean = scores["clean"][:, target]
    axes.plot(
        steps, clean, "--", color=PROBE_COLOR, label=f"{names[target]}, predicted clean image"
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
