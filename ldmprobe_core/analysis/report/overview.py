"""The beginning of a report: one sentence for each property, and one figure of when it is known."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmprobe_core.analysis.records import PropertyRecord, Summary
from ldmprobe_core.analysis.report.text import control_title, metric_title, number
from ldmprobe_core.analysis.summarize import RunAnalysis
from ldmprobe_core.probing.inference.bootstrap import Bootstrap

_PROBE, _LABELER = "#0072B2", "#D55E00"


def overview_sentences(summary: Summary) -> list[str]:
    """Write one sentence for each property: its score, the controls, and when it can be read."""
    return [_sentence(name, result, summary) for name, result in summary.properties.items()]


def _sentence(name: str, result: PropertyRecord, summary: Summary) -> str:
    best, onset = result.best, result.emergence.probe.relative.onset
    text = f"{name.capitalize()}: {metric_title(best.metric)} {number(best.score)}"
    if best.score.low is None:
        return f"{text}; too few test prompts for intervals and comparisons."
    if result.not_beyond:
        names = ", ".join(control_title(control) for control in result.not_beyond)
        text += f", not clearly above {names}"
    else:
        text += ", above every control"
    if not onset.distribution:
        return f"{text}; when it emerges is undefined."
    low, high = onset.low or "later", onset.high or "later"
    if not onset.determined:
        return f"{text}; the step from which it can be read is not determined [{low}, {high}]."
    return (
        f"{text}; half of its final gain over position from step {onset.step} [{low}, {high}] of "
        f"{summary.steps} on."
    )


def overview_figure(analysis: RunAnalysis) -> Figure:
    """Draw for each property the scores of probes and labeler over steps, with the probes' onset.

    Bands are intervals.  The grey vertical band is the interval of the step from which the probes
    keep half of their final gain over position; a line marks that step if it is determined.
    """
    properties = analysis.summary.properties
    figure = Figure(figsize=(3.3 * len(properties), 2.7), layout="constrained")
    panels = figure.subplots(1, len(properties), squeeze=False)[0]
    for panel, (name, result) in zip(panels, properties.items(), strict=True):
        curves = analysis.curves[name]
        onset = result.emergence.probe.relative.onset
        if onset.low is not None:
            last = len(curves.probe) if onset.high is None else onset.high
            panel.axvspan(onset.low - 0.4, last + 0.4, color="0.85", linewidth=0)
        if onset.determined and onset.step is not None:
            panel.axvline(onset.step, color="0.3", linewidth=1)
        decoded = curves.sources["trajectory"]
        _line(panel, decoded, analysis.bootstrap, _LABELER, "s--", "labeler, step image")
        _line(panel, curves.probe, analysis.bootstrap, _PROBE, "o-", "probe")
        position = analysis.bootstrap.interval(curves.position).mean
        if position is not None:
            panel.axhline(position, color="0.35", linestyle=":", label="position alone")
        panel.set_title(f"{name} ({metric_title(result.best.metric)})", fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, fontsize=8, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _line(
    panel: Axes, scores: np.ndarray, bootstrap: Bootstrap, color: str, style: str, label: str
) -> None:
    """Draw means over samples of scores (step, sample), with their intervals as a band."""
    intervals = [bootstrap.interval(row) for row in scores]
    mean, low, high = (
        np.array([getattr(interval, end) for interval in intervals], float)
        for end in ("mean", "low", "high")
    )
    steps = np.arange(1, len(intervals) + 1)
    panel.plot(steps, mean, style, color=color, label=label, markersize=3)
    panel.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
