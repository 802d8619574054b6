"""Overview at the top of a report: a few numbers and two small figures for each property."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmprobe_core.analysis.controls.wording import metric_title
from ldmprobe_core.analysis.facts import limits_of, property_facts
from ldmprobe_core.analysis.records import PropertyRecord
from ldmprobe_core.analysis.report.image_grid import image_grid
from ldmprobe_core.analysis.report.style import (
    CLEAN_COLOR,
    CLEAN_LINE,
    DECODED_COLOR,
    DECODED_LINE,
    POSITION_LINE,
    PROBE_COLOR,
    PROBE_LINE,
    step_ticks,
)
from ldmprobe_core.analysis.report.text import property_title
from ldmprobe_core.analysis.run_analysis import RunAnalysis
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.study.layers import short_layer


def overview_figures(
    analysis: RunAnalysis, samples: list[dict[str, list[np.ndarray]]], steps: list[int]
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Draw each property's curves, and its maps of the first sample.

    Args:
        analysis: analysis of the run.
        samples: rows of the samples that the report shows (`figures.sample_rows`).
        steps: steps that the rows show, counted from 1.

    Yields:
        name of the property; figure, alternative text, title, facts and notes of its curves;
        figure and alternative text of its maps, empty if there is no sample.
    """
    shown = ", ".join(map(str, overview_steps(steps)))
    for prop, result in analysis.summary.properties.items():
        facts = property_facts(result, analysis.summary)
        notes = limits_of(prop, result, analysis.summary)
        curves = {
            "figure": overview_curves(prop, analysis),
            "alternative": f"{prop} over steps: {'; '.join(map(str, facts))}. {notes}".strip(),
            "title": property_title(prop),
            "facts": [fact._asdict() for fact in facts],
            "notes": notes,
            "curve": _curve_note(result),
        }
        strip = {
            "figure": overview_images(prop, samples[0], steps),
            "alternative": f"One sample at steps {shown} and finished: step images, and {prop} as "
            "the probe and the labeler find it.",
        } if samples else {}  # fmt: skip
        yield prop, curves, strip


def _curve_note(result: PropertyRecord) -> str:
    """Name the layer of the curves if it is not that of the best cell, whose score is printed."""
    curve, best = short_layer(result.layer.name), short_layer(result.best.layer)
    if curve == best:
        return ""
    return (
        f" The probes' curve is of {curve}, which validation chooses over all steps; the chosen "
        f"cell is in {best}."
    )


def overview_curves(prop: str, analysis: RunAnalysis) -> Figure:
    """Draw a property's scores of probes and labelers over steps, with the onset of the probes.

    Bands are intervals.  The grey vertical band is the interval of the step from which the probes
    keep half of their final gain over position; a line marks that step if it is determined.
    """
    curves, bootstrap = analysis.curves[prop], analysis.bootstrap
    result = analysis.summary.properties[prop]
    figure = Figure(figsize=(4.1, 2.5))
    panel = figure.subplots()
    onset = result.emergence.probe.relative.onset
    if onset.low is not None:
        last = len(curves.probe) if onset.high is None else onset.high
        panel.axvspan(onset.low - 0.5, last + 0.5, color="0.85", linewidth=0)
    if onset.determined and onset.step is not None:
        panel.axvline(onset.step, color="0.3", linewidth=1)
    position = bootstrap.interval(curves.position).mean
    decoded, clean = curves.sources["trajectory"], curves.sources["clean"]
    _line(panel, curves.probe, bootstrap, PROBE_COLOR, PROBE_LINE, "probe")
    if position is not None:
        panel.axhline(
            position, color="0.35", linestyle=POSITION_LINE, linewidth=1, label="position alone"
        )
    if curves.labeled:
        _line(panel, decoded, bootstrap, DECODED_COLOR, DECODED_LINE, "labeler, decoded latents")
        _line(panel, clean, bootstrap, CLEAN_COLOR, CLEAN_LINE, "labeler, predicted clean image")
    panel.set_xlabel("step", fontsize=9)
    panel.set_ylabel(metric_title(result.best.metric), fontsize=9)
    panel.set_xlim(0.5, len(curves.probe) + 0.5)
    panel.set_xticks(step_ticks(len(curves.probe)))
    panel.tick_params(labelsize=8.5)
    panel.legend(
        fontsize=8.5, loc="lower center", bbox_to_anchor=(0.45, 0.98), ncols=2, frameon=False,
        columnspacing=1.0, handlelength=1.6,
    )  # fmt: skip
    return figure


def overview_images(prop: str, rows: dict[str, list[np.ndarray]], steps: list[int]) -> Figure:
    """Draw one sample at a few steps: its step images, and a property's maps.

    Args:
        prop: name of the property.
        rows: rows of the sample (`figures.sample_rows`).
        steps: steps that the rows show, counted from 1; the drawn ones are `overview_steps`.
    """
    drawn = overview_steps(steps)
    columns = [*(steps.index(step) for step in drawn), -1]
    shown = [
        [rows[name][i] for i in columns]
        for name in ("decoded latents", f"probe {prop}", f"labeler {prop}")
    ]
    titles = [*(f"step {step}" for step in drawn), "final, label"]
    return image_grid(shown, 0.58, titles, ["image", "probe", "labeler"], fontsize=8.5)


def overview_steps(steps: list[int]) -> list[int]:
    """Choose at most five of a sample's steps, among them the last, to draw in the overview."""
    chosen = [step for step in steps if step in (1, 3, 5, 10, steps[-1])]
    return chosen if len(chosen) > 2 else steps[:4] + steps[4:][-1:]


def _line(
    panel: Axes, scores: np.ndarray, bootstrap: Bootstrap, color: str, style: str, label: str
) -> None:
    """Draw the mean over samples of scores (step, sample), with its interval as a band."""
    intervals = [bootstrap.interval(row) for row in scores]
    mean, low, high = (
        np.array([getattr(interval, end) for interval in intervals], float)
        for end in ("mean", "low", "high")
    )
    steps = np.arange(1, len(intervals) + 1)
    panel.plot(steps, mean, style, color=color, label=label, markersize=3)
    panel.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
