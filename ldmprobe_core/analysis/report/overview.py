"""Overview at the top of a report: a few sentences and two small figures for each property."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    lead,
    metric_title,
    number,
    property_title,
    unmeasured_clause,
)
from ldmprobe_core.analysis.run_analysis import RunAnalysis
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.inference.emergence import Lead
from ldmprobe_core.study.layers import short_layer


def overview_sentences(summary: Summary) -> list[str]:
    """Write the sentences on each property: best probe, controls, onset and leads."""
    return [_sentence(name, result, summary) for name, result in summary.properties.items()]


def _sentence(name: str, result: PropertyRecord, summary: Summary) -> str:
    """Write the sentences on one property: its best probe, controls, onset and leads."""
    best, onset = result.best, result.emergence.probe.relative.onset
    if clause := unmeasured_clause(result, summary.samples["test"]):
        return f"{property_title(name)}: {clause}."
    text = (
        f"{property_title(name)}: {metric_title(best.metric)} {number(best.score)} at step "
        f"{best.step}, {short_layer(best.layer)}"
    )
    if best.score.low is None:
        lost = " with a defined score" if result.undefined.best else ""
        return f"{text}; too few test prompts{lost} for intervals and comparisons."
    empty = empty_masks_sentence(result, summary.samples["test"])
    text += f", {_comparison(result)}.{empty}"
    if not onset.distribution:
        return f"{text} When it emerges is undefined."
    low, high = onset.low or "later", onset.high or "later"
    if not onset.determined:
        return (
            f"{text} The step from which it can be read is not determined [{low}, {high}]."
            f"{input_sentence(result)}"
        )
    text += (
        f" From step {onset.step} [{low}, {high}] of {summary.steps} on, probes hold at least half "
        f"of their last step's gain over position alone.{input_sentence(result)}"
    )
    decoded, clean = result.leads.decoded.onset, result.leads.clean.onset
    if decoded.low is None or clean.low is None:
        return text
    recalibrated = _recalibrated(decoded, result.leads.decoded_recalibrated.onset)
    return (
        f"{text} The labeler reaches that half {_later(decoded)} in the decoded latents"
        f"{recalibrated}, and {_later(clean)} in the predicted clean image."
    )


def _recalibrated(plain: Lead, recalibrated: Lead) -> str:
    """Say how many steps later a labeler is once its maps are recalibrated, as a fair rival's are.

    Args:
        plain: lead over the labeler as it is.
        recalibrated: lead over the recalibrated labeler, undefined without training step images.
    """
    if recalibrated.low is None:
        return ""
    if _later(recalibrated) == _later(plain):
        return ", recalibrated to the labels too"
    return f", recalibrated to the labels {_later(recalibrated)}"


def _later(value: Lead) -> str:
    """Say how many steps after the probes a labeler reaches their onset, or that this is open.

    If the interval includes 0, the order of the two is open, so the text names neither as first.
    """
    low, high = value.low, value.high
    if low is None or high is None:
        return "at an undefined step"
    if not value.determined:
        if high < 0:
            span = f"{-high} to {-low} steps earlier"
        elif low > 0:
            span = f"{low} to {high} steps later"
        elif high == 0:
            span = f"between {-low} steps earlier and the same step"
        elif low == 0:
            span = f"between the same step and {high} later"
        else:
            span = f"between {-low} step{'s' * (low < -1)} earlier and {high} later"
        return f"{span} (not determined more closely)"
    if low == high == 0:
        return "at the same step (0 [0, 0] steps)"
    if low <= 0 <= high:
        return f"not clearly earlier or later ({value.steps} [{low}, {high}] steps)"
    if high < 0:
        return f"{-(value.steps or 0)} [{-high}, {-low}] steps earlier"
    return f"{lead(value)} steps later"


def _comparison(result: PropertyRecord) -> str:
    """Name the controls that the best probe does not exceed; if it exceeds all, the closest one.

    Those that clearly exceed the probe are named with the difference.

    Controls that it cannot be compared with, because too few prompts have both scores, are named in
    a clause of their own.
    """
    unknown = ""
    if result.not_compared:
        unknown = f"; no interval to compare it with {joined(result.not_compared)}"
    if result.not_beyond != result.not_compared:
        clauses = [f"not clearly above {joined(result.not_clear)}"] if result.not_clear else []
        by_name = result.controls.by_name()
        below = [
            f"{control_title(name)} (difference {number(by_name[name].difference)})"
            for name in result.below
        ]
        clauses += [f"below {' and '.join(below)}"] if below else []
        return f"{', '.join(clauses)}{unknown}"
    differences = {
        name: record.difference
        for name, record in result.controls.linear().items()
        if record.compared
    }
    if not differences:
        return "without an interval to compare it with any control"
    nearest = min(differences, key=lambda name: differences[name].mean or 0.0)
    closest = f"the closest, {control_title(nearest)}, is {number(differences[nearest])} lower"
    return f"above every {'other ' * bool(unknown)}control; {closest}{unknown}"


def overview_figures(
    analysis: RunAnalysis, samples: list[dict[str, list[np.ndarray]]], steps: list[int]
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Draw each property's curves, and its maps of the first sample.

    Args:
        analysis: analysis of the run.
        samples: rows of the samples that the report shows (`figures.sample_rows`).
        steps: steps that the rows show, counted from 1.

    Yields:
        name of the property; figure, alternative text, title, sentences and note of its curves;
        figure and alternative text of its maps, empty if there is no sample.
    """
    shown = ", ".join(map(str, overview_steps(steps)))
    sentences = overview_sentences(analysis.summary)
    for prop, sentence in zip(analysis.summary.properties, sentences, strict=True):
        title, _, text = sentence.partition(": ")
        curves = {
            "figure": overview_curves(prop, analysis),
            "alternative": f"{prop} over steps. {sentence}",
            "title": title,
            "text": text[:1].upper() + text[1:],
            "curve": _curve_note(analysis.summary.properties[prop]),
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
