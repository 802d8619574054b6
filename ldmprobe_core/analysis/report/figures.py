"""Figures of a report, in colours that readers with colour blindness can distinguish."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmprobe_core.analysis.controls.wording import control_title, metric_title
from ldmprobe_core.analysis.curves import Curves
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
)
from ldmprobe_core.analysis.run_analysis import RunAnalysis
from ldmprobe_core.analysis.stored_probes import SampleMaps
from ldmprobe_core.errors import counted
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


def curves_caption(prop: str, curves: Curves, metric: str) -> str:
    """Write a curve figure's caption, with the steps at which the labelers pass the probes."""
    labeler = ", of the labeler on the step images, and" if curves.labeled else " and"
    text = (
        f"How early {prop} can be read: {metric_title(metric)} of one layer's probes{labeler} of "
        "the controls, over the steps."
    )
    steps, samples = curves.decoded_steps, curves.decoded
    probe = curves.probe[steps - 1][:, samples].mean(1)
    found = ""
    for source, title in (("trajectory", "decoded latents"), ("clean", "predicted clean image")):
        scores = curves.sources[source][steps - 1][:, samples].mean(1)
        # Skip a labeler that does not exist or has undefined scores.
        if not np.isfinite(scores - probe).all():
            continue
        if passes := _passes(scores > probe, steps, len(curves.probe)):
            found += f" On the {title}, the labeler's mean {passes}."
    if found and not samples.all():
        text += (
            f" The labeler's curves are of the {counted(int(samples.sum()), 'test image')} with "
            f"step images, the probes' curve is of all {len(samples)}. Compared on the former:"
        )
    return text + found


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
    if curves.labeled:
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
