"""Overview at the top of a report: one sentence for each property, and a figure of their onsets."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmprobe_core.analysis.records import PropertyRecord, Summary
from ldmprobe_core.analysis.report.figures import step_ticks
from ldmprobe_core.analysis.report.style import CLEAN_COLOR, DECODED_COLOR, PROBE_COLOR
from ldmprobe_core.analysis.report.text import (
    control_title,
    lead,
    metric_title,
    number,
    property_title,
    short_layer,
)
from ldmprobe_core.analysis.run_analysis import RunAnalysis
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.inference.emergence import Lead
from ldmprobe_core.study.probe_kinds import PROBE_KINDS


def overview_sentences(summary: Summary) -> list[str]:
    """Write one sentence for each property: best probe, controls, onset and leads."""
    return [_sentence(name, result, summary) for name, result in summary.properties.items()]


def _sentence(name: str, result: PropertyRecord, summary: Summary) -> str:
    """Write the sentence on one property: its best probe, controls, onset and leads."""
    best, onset = result.best, result.emergence.probe.relative.onset
    text = (
        f"{property_title(name)}: {metric_title(best.metric)} {number(best.score)} at step "
        f"{best.step} of {short_layer(best.layer)}"
    )
    if best.score.low is None:
        return f"{text}; too few test prompts for intervals and comparisons."
    text += f", {_comparison(result)}"
    if not onset.distribution:
        return f"{text}; when it emerges is undefined."
    low, high = onset.low or "later", onset.high or "later"
    if not onset.determined:
        return f"{text}; the step from which it can be read is not determined [{low}, {high}]."
    text += (
        f"; from step {onset.step} [{low}, {high}] of {summary.steps} on it keeps at least half of "
        "its final gain over position alone"
    )
    if result.leads.decoded.onset.low is None or result.leads.clean.onset.low is None:
        return f"{text}."
    return (
        f"{text}. A labeler reaches that score in the decoded latents "
        f"{_later(result.leads.decoded.onset)}, in the predicted clean image "
        f"{_later(result.leads.clean.onset)}."
    )


def _later(value: Lead) -> str:
    """Format a lead as text: how many steps after the probes the labeler reaches its onset."""
    if value.determined:
        return f"{lead(value)} steps later"
    return f"at a distance that is not determined ([{value.low}, {value.high}] steps later)"


def _comparison(result: PropertyRecord) -> str:
    """Name the controls that the best probe does not exceed; if it exceeds all, the closest one."""
    if result.not_beyond:
        return f"not clearly above {', '.join(map(control_title, result.not_beyond))}"
    differences = {
        name: record.difference
        for name, record in result.controls.by_name().items()
        if name not in PROBE_KINDS and record.difference.mean is not None
    }
    nearest = min(differences, key=lambda name: differences[name].mean or 0.0)
    return (
        f"above every control, the nearest being {control_title(nearest)} (by "
        f"{number(differences[nearest])})"
    )


def overview_figure(analysis: RunAnalysis) -> Figure:
    """Draw for each property the scores of probes and labelers over steps, with the probes' onset.

    Bands are intervals.  The grey vertical band is the interval of the step from which the probes
    keep half of their final gain over position; a line marks that step if it is determined.
    """
    properties = analysis.summary.properties
    figure = Figure(figsize=(3.3 * len(properties), 2.6))
    panels = figure.subplots(
        1, len(properties), squeeze=False, sharey=True, gridspec_kw={"wspace": 0.06}
    )[0]
    for panel, (name, result) in zip(panels, properties.items(), strict=True):
        curves = analysis.curves[name]
        onset = result.emergence.probe.relative.onset
        if onset.low is not None:
            last = len(curves.probe) if onset.high is None else onset.high
            panel.axvspan(onset.low - 0.5, last + 0.5, color="0.85", linewidth=0)
        if onset.determined and onset.step is not None:
            panel.axvline(onset.step, color="0.3", linewidth=1)
        decoded, clean = curves.sources["trajectory"], curves.sources["clean"]
        _line(panel, decoded, analysis.bootstrap, DECODED_COLOR, "s--", "labeler, decoded latents")
        _line(panel, clean, analysis.bootstrap, CLEAN_COLOR, "^:", "labeler, predicted clean image")
        _line(panel, curves.probe, analysis.bootstrap, PROBE_COLOR, "o-", "probe")
        position = analysis.bootstrap.interval(curves.position).mean
        if position is not None:
            panel.axhline(position, color="0.35", linestyle=":", label="position alone")
        panel.set_title(f"{name} ({metric_title(result.best.metric)})", fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.set_xlim(0.5, len(curves.probe) + 0.5)
        panel.set_xticks(step_ticks(len(curves.probe)))
        panel.tick_params(labelsize=8)
    lines = panels[0].get_legend_handles_labels()
    above = (0.5, 0.95)
    figure.legend(
        *lines, fontsize=8, loc="lower center", bbox_to_anchor=above, ncols=4, frameon=False
    )
    return figure


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
