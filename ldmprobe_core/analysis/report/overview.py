"""Overview at the top of a report: a few numbers and two small figures for each property."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmprobe_core.analysis.controls.wording import (
    control_title,
    empty_masks_sentence,
    input_sentence,
    joined,
)
from ldmprobe_core.analysis.records import PropertyRecord, Summary
from ldmprobe_core.analysis.report.figures import step_ticks
from ldmprobe_core.analysis.report.image_grid import image_grid
from ldmprobe_core.analysis.report.style import (
    CLEAN_COLOR,
    CLEAN_LINE,
    DECODED_COLOR,
    DECODED_LINE,
    POSITION_LINE,
    PROBE_COLOR,
    PROBE_LINE,
)
from ldmprobe_core.analysis.report.text import (
    metric_title,
    number,
    property_title,
    unmeasured_clause,
)
from ldmprobe_core.analysis.run_analysis import RunAnalysis
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.probing.inference.emergence import Lead
from ldmprobe_core.study.layers import short_layer


class Fact(NamedTuple):
    """One number of a property with what it says, such as ``5 steps [3, 6] later, ...``.

    Attributes:
        value: the number with its unit, or a word if there is none.
        interval: its 95% interval; empty if there is none.
        text: what the number says, which continues it as a phrase.
    """

    value: str
    interval: str
    text: str

    def __str__(self) -> str:
        return " ".join(part for part in self if part)


def overview_facts(result: PropertyRecord, summary: Summary) -> list[Fact]:
    """List a property's facts: best probe, closest control, onset, and leads over the labeler."""
    best, onset = result.best, result.emergence.probe.relative.onset
    if clause := unmeasured_clause(result, summary.samples["test"]):
        return [Fact("not measured", "", clause)]
    score = f"{metric_title(best.metric)} at step {best.step}, {short_layer(best.layer)}"
    if best.score.low is None:
        lost = " with a defined score" if result.undefined.best else ""
        few = f"; too few test prompts{lost} for intervals and comparisons"
        return [_fact(best.score, score + few)]
    facts = [_fact(best.score, score), _comparison(result)]
    half = "probes keep at least half of their final gain over position"
    if not onset.distribution:
        return [*facts, Fact("undefined", "", "when it emerges")]
    interval = f"[{onset.low or 'later'}, {onset.high or 'later'}]"
    if not onset.determined:
        return [*facts, Fact("not determined", interval, f"step from which {half}")]
    begins = f"of {summary.steps}: from here on, {half}"
    facts.append(Fact(f"step {onset.step}", interval, begins))
    leads = result.leads
    if leads.decoded.onset.low is None or leads.clean.onset.low is None:
        return facts
    return [
        *facts,
        _ahead(leads.decoded.onset, "decoded latents", leads.decoded_recalibrated.onset),
        _ahead(leads.clean.onset, "predicted clean image"),
    ]


def _fact(score: Interval, text: str) -> Fact:
    """Split a score into its mean and interval, followed by a text."""
    mean, _, interval = number(score).partition(" ")
    return Fact(mean, interval, text)


def _ahead(value: Lead, where: str, recalibrated: Lead | None = None) -> Fact:
    """Say how many steps the probes are ahead of a labeler at half of their gain.

    Args:
        value: lead of the probes over the labeler.
        where: image of a step in which the labeler looks.
        recalibrated: lead over the labeler with its maps recalibrated to the labels, as a fair
            rival's are; undefined without training step images.
    """
    steps, interval, order, note = _order(value)
    text = f"{order} the labeler in the {where}{note}"
    if recalibrated is None or recalibrated.low is None:
        return Fact(steps, interval, text)
    if _order(recalibrated) == _order(value):
        return Fact(steps, interval, f"{text}, recalibrated to the labels too")
    *number_too, order_too, note_too = _order(recalibrated)
    note_too = "" if note_too == note else note_too
    also = " ".join(part for part in (*number_too, f"{order_too} it{note_too}") if part)
    return Fact(steps, interval, f"{text}; recalibrated to the labels, {also}")


def _order(value: Lead) -> tuple[str, str, str, str]:
    """Format a lead: steps, interval, which of the two is first, and a note if this is open.

    If the interval includes 0, the order of the two is open.
    """
    low, high = value.low, value.high
    if low is None or high is None:
        return "undefined", "", "lead over", ""
    ahead, note = "ahead of", ""
    if high < 0:
        low, high, ahead = -high, -low, "behind"
    elif low <= 0 and high > low:
        note = " (which is first is open)"
    if not value.determined:
        return f"{low} to {high} steps", "", ahead, note or " (not determined more closely)"
    steps = abs(value.steps or 0) if ahead == "behind" else value.steps or 0
    return _counted(steps), f"[{low}, {high}]", ahead, note


def _counted(steps: int) -> str:
    return f"{steps} step{'s' * (abs(steps) != 1)}"


def _comparison(result: PropertyRecord) -> Fact:
    """Name the controls that the best probe does not exceed; if it exceeds all, the closest one.

    Those that clearly exceed the probe are named with the difference.

    Controls that it cannot be compared with, because too few prompts have both scores, are named in
    a clause of their own.
    """
    unknown = ""
    if result.not_compared:
        unknown = f"; no interval to compare it with {joined(result.not_compared)}"
    if result.not_beyond != result.not_compared:
        by_name = result.controls.by_name()
        below = " and ".join(
            f"{control_title(name)} (difference {number(by_name[name].difference)})"
            for name in result.below
        )
        if not result.not_clear:
            return Fact("below", "", below + unknown)
        below = f", and below {below}" if below else ""
        return Fact("not clearly", "", f"above {joined(result.not_clear)}{below}{unknown}")
    differences = {
        name: record.difference
        for name, record in result.controls.linear().items()
        if record.compared
    }
    if not differences:
        return Fact("no interval", "", "to compare it with any control")
    nearest = min(differences, key=lambda name: differences[name].mean or 0.0)
    known = f"the closest of {len(differences)} controls, all clearly exceeded"
    if len(differences) == 1:
        known = "the only control" + " with an interval" * bool(unknown)
    elif unknown:
        known = f"the closest of {len(differences)} with an interval, all clearly exceeded"
    mean, interval, text = _fact(
        differences[nearest], f"above {control_title(nearest)}, {known}{unknown}"
    )
    return Fact(f"+{mean}", interval, text)


def overview_notes(result: PropertyRecord, summary: Summary) -> str:
    """Say what limits a property's facts: empty masks, and inputs that do as well at a step."""
    samples = summary.samples["test"]
    if result.best.score.low is None or unmeasured_clause(result, samples):
        return ""
    empty = empty_masks_sentence(result, samples)
    return (empty + input_sentence(result)).strip()


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
        facts = overview_facts(result, analysis.summary)
        notes = overview_notes(result, analysis.summary)
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
        f" The probes' curve is of {curve}, which is chosen over all steps; the best cell is in "
        f"{best}."
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
    titles = [*(f"step {step}" for step in drawn), "final"]
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
