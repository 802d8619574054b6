"""Sentences and table rows that present a summary on terminals, in artifacts and in reports.

The command line imports this module, so it must not import torch or a plotting library, which
would make every command start slowly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldmprobe_core.analysis.records import (
    CellRecord,
    ClassesRecord,
    EmergenceRecord,
    LeadRecord,
    PropertyRecord,
    Summary,
)
from ldmprobe_core.probing.bootstrap import Interval
from ldmprobe_core.probing.emergence import Lead, Step
from ldmprobe_core.study.conditions import CONDITIONS, controls
from ldmprobe_core.study.probe_kinds import PROBE_KINDS

if TYPE_CHECKING:
    from ldmprobe_core.interventions.results import InterventionSummary

_METRIC_TITLES = {"spearman": "rank correlation", "dice": "Dice"}
_BASELINE_TITLES = {"position": "position alone", "latents": "the latents alone"}

_EFFECTS = {
    "edited": "edited",
    "random": "random change of the same norm",
    "shuffled": "through shuffled-label probes",
}


def metric_title(name: str) -> str:
    """Title of a metric in sentences and on axes."""
    return _METRIC_TITLES.get(name, name)


def control_title(name: str) -> str:
    """Title of a control, which is a baseline, a condition or a nonlinear kind of probe."""
    if name in _BASELINE_TITLES:
        return _BASELINE_TITLES[name]
    record = CONDITIONS.get(name) or PROBE_KINDS.get(name)
    return record.title if record else name


def control_columns(summary: Summary) -> dict[str, str]:
    """Choose the column headings of the controls, by name.

    An optional control gets a column only if at least one property has it.
    """
    used = {name for result in summary.properties.values() for name in result.controls.by_name()}
    columns = {"position": "position"}
    for condition in controls():
        if condition.always_stored or condition.name in used:
            columns[condition.name] = condition.column
    columns["latents"] = "latents"
    return columns | {name: name for name in sorted(used) if name not in columns}


def short_layer(layer: str) -> str:
    """Shorten a layer's name by removing a part that all attention layers share."""
    return layer.replace(".transformer_blocks.0", "")


def number(interval: Interval | CellRecord | None) -> str:
    """Format a mean with its interval, as ``0.83 [0.80, 0.86]``; a dash if the mean is undefined.

    If the interval is undefined, only the mean is given.
    """
    if interval is None or interval.mean is None:
        return "–"
    if interval.low is None:
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def step(value: Step) -> str:
    """Format a step with its interval, as ``3 [2, 4]``; a dash if the step is undefined."""
    return "–" if value.step is None else f"{value.step} [{value.low}, {value.high}]"


def lead(value: Lead) -> str:
    """Format a lead with its interval, as ``7 [6, 8]``; a dash if the lead is undefined."""
    return "–" if value.steps is None else f"{value.steps} [{value.low}, {value.high}]"


def best_rows(summary: Summary) -> list[dict[str, str]]:
    """Build the table of best cells, last steps, controls and emergence, one row per property."""
    columns = control_columns(summary)
    rows = []
    for name, result in summary.properties.items():
        best, emergence, records = result.best, result.emergence, result.controls.by_name()
        above = _above(best, result.controls.position)
        rows.append(
            {
                "property": name,
                "metric": metric_title(best.metric),
                "best": number(best),
                "at": f"step {best.step}, {short_layer(best.layer)}, {best.kind}",
                "last step": number(result.last),
                **{heading: number(records.get(key)) for key, heading in columns.items()},
                "above position": "yes" if above else "not clearly" if best.low else "no interval",
                "onset": step(emergence.probe.onset),
                "image onset": step(emergence.decoded.onset),
                "settled": step(emergence.probe.settled),
                "image settled": step(emergence.decoded.settled),
                "lead": lead(emergence.lead.decoded.onset),
                "lead over clean": lead(emergence.lead.clean.onset),
            }
        )
    return rows


def headline(summary: Summary) -> list[str]:
    """Write the sentences that summarise the results: one for each property, and one on classes."""
    lines = []
    for name, result in summary.properties.items():
        best, last, emergence = result.best, result.last, result.emergence
        line = (
            f"{name.capitalize()}: at the last step the best probe scores {number(last)} "
            f"({metric_title(best.metric)}); the best cell, {number(best)}, "
            f"{_against(result, summary.samples)}."
        )
        # Without an interval, the onset is undefined too, and the line above already says why.
        if best.low is not None:
            line += _onset_sentence(emergence)
        if result.missing:
            line += f" {result.missing:.1%} of the pixels of its labels are not measured."
        lines.append(line)
    if summary.classes is not None:
        lines.append(classes_line(summary.classes))
    return lines


def effect_rows(summary: InterventionSummary) -> list[dict[str, str]]:
    """Build the table of an intervention: the unedited images, then one row per condition."""
    metric = f"{metric_title(summary.metric)} with target"
    rows = [
        {
            "image": "unedited",
            metric: number(summary.unedited),
            "less unedited": "",
            "improved": "",
            "change elsewhere": "",
            "class kept": "",
        }
    ]
    for condition, effect in summary.effects.items():
        rows.append(
            {
                "image": _EFFECTS[condition],
                metric: number(effect.mean),
                "less unedited": number(effect.less_unedited),
                "improved": f"{effect.improved * 100:.0f}%",
                "change elsewhere": number(effect.outside),
                "class kept": "–" if effect.kept is None else f"{effect.kept * 100:.0f}%",
            }
        )
    return rows


def classes_line(classes: ClassesRecord) -> str:
    """Write the sentence on the step from which the class labeler recognises the target class."""
    decoded, clean = classes.recognition_step["trajectory"], classes.recognition_step["clean"]
    target = "prompt's class" if classes.by_prompt else "final image's top class"
    share, confident = classes.recognized * 100, classes.confident * 100
    return (
        f"Class: the {target} leads at the last step in {share:.1f}% of images; in these it leads, "
        f"on average, from step {number(decoded)} on in the decoded latents and from step "
        f"{number(clean)} on in the predicted clean image. {confident:.1f}% of final images have a "
        "top probability above 90%."
    )


def _onset_sentence(emergence: EmergenceRecord) -> str:
    """Write the sentence on the steps from which probes and labelers keep half of their gain."""
    probe, decoded = emergence.probe.onset, emergence.decoded.onset
    if probe.step is None:
        return (
            " Its onset is undefined, as the probes do not clear the position baseline at the "
            "last step."
        )
    sentence = f" Probes keep half of their gain from step {step(probe)}"
    if decoded.step is None:
        return f"{sentence}; the onset of the labeler on the step's decoded latents is undefined."
    return (
        f"{sentence}, the labeler on the step's decoded latents from step {step(decoded)}"
        f"{_lead_clause(emergence.lead)}"
    )


def _lead_clause(leads: LeadRecord) -> str:
    """Write the end of the sentence, on the steps by which the probes precede the labeler."""
    decoded, clean = leads.decoded.onset, leads.clean.onset
    text = f": a lead of {lead(decoded)} steps"
    if clean.steps is None:
        return f"{text}; the lead over the labeler on the predicted clean image is undefined."
    return f"{text}, and of {lead(clean)} over the labeler on the predicted clean image."


def _against(result: PropertyRecord, samples: dict[str, int]) -> str:
    """Write the clause on the controls that the best cell exceeds, and those that it does not.

    The best cell exceeds a control if its interval lies above the interval of the control.

    Args:
        result: record of the property.
        samples: numbers of samples in the summary.  With too few test prompts, the best cell has
            no interval, and the clause says so.
    """
    if result.best.low is None:
        prompts = samples.get("test_groups", 0)
        return f"has no interval ({prompts} test prompt{'s' * (prompts != 1)}) to compare by"
    # A nonlinear probe may score above the best linear one, so the clause does not mention it.
    records = {n: c for n, c in result.controls.by_name().items() if n not in PROBE_KINDS}
    cleared = [name for name, record in records.items() if _above(result.best, record)]
    missed = [name for name in records if name not in cleared]

    def listed(names: list[str]) -> str:
        return ", ".join(f"{control_title(name)} ({number(records[name])})" for name in names)

    if not missed:
        return f"is above {listed(cleared)}"
    above = f"is above {listed(cleared)}, but " if cleared else "is "
    return f"{above}not clearly above {listed(missed)}"


def _above(one: CellRecord, other: Interval) -> bool:
    """Whether one interval lies entirely above the other; False if either is undefined."""
    return one.low is not None and other.high is not None and one.low > other.high
