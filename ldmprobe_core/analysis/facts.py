"""A property's result as a few numbers, each with what it says.

The command line imports this module, so it must not import torch or a plotting library.
"""

from __future__ import annotations

from typing import NamedTuple

from ldmprobe_core.analysis.controls.wording import (
    control_title,
    empty_masks_sentence,
    fixed_cut_sentence,
    input_sentence,
    joined,
    metric_title,
)
from ldmprobe_core.analysis.records import PropertyRecord, Summary
from ldmprobe_core.analysis.report.text import missing_sentence, number, unmeasured_clause
from ldmprobe_core.errors import counted
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.probing.inference.emergence import Lead
from ldmprobe_core.study.layers import short_layer

AHEAD, BEHIND = "ahead of", "behind"


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


def property_facts(result: PropertyRecord, summary: Summary) -> list[Fact]:
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
    half = "half of the probes' final gain over position is kept"
    if not onset.distribution:
        return [*facts, Fact("undefined", "", "when it emerges")]
    interval = f"[{onset.low or 'later'}, {onset.high or 'later'}]"
    if not onset.determined:
        return [*facts, Fact("not determined", interval, f"step from which on {half}")]
    share = onset.distribution[(onset.step or 1) - 1]
    begins = f"of {summary.steps} (in {share:.0%} of resamples): from here on, {half}"
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
    first, interval, order, note = _order(value)
    text = f"{order} the labeler in the {where}"
    if recalibrated is None or recalibrated.low is None:
        return Fact(first, interval, text + note)
    if _order(recalibrated) == _order(value):
        return Fact(first, interval, f"{text}, also if recalibrated to the labels{note}")
    first_too, interval_too, order_too, note_too = _order(recalibrated)
    other = f"{first_too} {interval_too}".strip()
    if order_too in (AHEAD, BEHIND):
        other += f" {order_too} it" + note_too * (note_too != note)
    return Fact(first, interval, f"{text}{note}; if recalibrated to the labels, {other}")


def _order(value: Lead) -> tuple[str, str, str, str]:
    """Format a lead: a number, its interval, words before the labeler's name, and a note after it.

    If the interval includes 0, the order of the two is open.
    """
    low, high = value.low, value.high
    if low is None or high is None:
        return "undefined", "", "lead over", ""
    if low <= 0 <= high:
        return "open", f"[{low}, {high}]", "lead in steps over", ""
    order = AHEAD if low > 0 else BEHIND
    if high < 0:
        low, high = -high, -low
    if not value.determined:
        return f"{low} to {high} steps", "", order, " (an interval, too wide for one number)"
    return counted(abs(value.steps or 0), "step"), f"[{low}, {high}]", order, ""


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
    with_interval = " with an interval" * bool(unknown)
    known = f"the least margin over {len(differences)} controls{with_interval}, all exceeded"
    if len(differences) == 1:
        known = f"the only control{with_interval}"
    mean, interval, text = _fact(
        differences[nearest], f"above {control_title(nearest)}, {known}{unknown}"
    )
    return Fact(f"+{mean}", interval, text)


def limits_of(name: str, result: PropertyRecord, summary: Summary) -> str:
    """Say what limits the facts of a property; empty if nothing does.

    These are empty masks, a fixed cut of masks, inputs that do as well at a step, and pixels that
    are not measured.

    Args:
        name: name of the property.
        result: its results.
        summary: summary of the run.
    """
    samples = summary.samples["test"]
    if unmeasured_clause(result, samples):
        return ""
    text = ""
    if result.best.score.low is not None:
        text += empty_masks_sentence(result, samples)
        text += fixed_cut_sentence(name, result) + input_sentence(result)
    return (text + missing_sentence(result)).strip()
