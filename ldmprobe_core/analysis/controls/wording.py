"""Titles of controls, and the words on which of them a probe exceeds.

The command line imports this module, so it must not import torch or a plotting library.
"""

from __future__ import annotations

from collections.abc import Mapping

from ldmprobe_core.analysis.controls.records import (
    ClassMapRecord,
    ControlRecord,
    NumberRecord,
    VectorRecord,
)
from ldmprobe_core.analysis.records import PropertyRecord, Summary
from ldmprobe_core.study.conditions import CONDITIONS, controls
from ldmprobe_core.study.probe_kinds import PROBE_KINDS

_BASELINE_TITLES = {
    "position": "position alone",
    "latents": "the latents alone",
    "clean_pixels": "the predicted clean image's pixels",
    "prompt": "the prompt alone",
    "same_prompt": "its own maps on other images of the same prompt",
}


def control_title(name: str) -> str:
    """Return the title of a control: a baseline, a control condition or a nonlinear probe kind."""
    if name in _BASELINE_TITLES:
        return _BASELINE_TITLES[name]
    record = CONDITIONS.get(name) or PROBE_KINDS.get(name)
    return record.title if record else name


def control_columns(summary: Summary) -> dict[str, str]:
    """Return the column headings of the report table's controls, by control name.

    An optional control gets a column only if at least one property has it.
    """
    used = {name for result in summary.properties.values() for name in result.controls.by_name()}
    columns = {"position": "position"}
    for condition in controls():
        if condition.always_stored or condition.name in used:
            columns[condition.name] = condition.column
    columns["latents"] = "latents"
    if "clean_pixels" in used:
        columns["clean_pixels"] = "clean pixels"
    return columns | {name: name for name in sorted(used) if name not in columns}


def not_exceeded(result: PropertyRecord) -> str:
    """List the controls that the best probe does not clearly exceed; a dash if there are none.

    Controls that it cannot be compared with follow after ``no interval:``; if there is no interval
    for any control, the text is ``no interval``.
    """
    if not any(record.compared for record in result.controls.linear().values()):
        return "no interval"
    texts = []
    if result.not_clear:
        texts.append(", ".join(map(control_title, result.not_clear)))
    if result.not_compared:
        texts.append(f"no interval: {', '.join(map(control_title, result.not_compared))}")
    return "; ".join(texts) or "–"


def _on(samples: dict[str, int] | None) -> str:
    """Format the number of test images that a control covers; empty if it covers all of them."""
    return "" if samples is None else f" on {samples['test']} test images"


def _large_p(record: ControlRecord) -> str:
    """Format the p value of a control, if it alone keeps the control from being exceeded."""
    is_cause = record.difference.low is not None and record.difference.low > 0
    return f", p = {record.p:.2f}" if is_cause and record.p and not record.exceeded else ""


def against(result: PropertyRecord) -> str:
    """Return the clause on the controls: those that the best probe exceeds, and those it does not.

    Each control is given with the paired difference of the best probe and the control's own best
    cell.  With too few test prompts there is no interval, for the probe or for a control that was
    computed on a part of the samples, and the clause says so.
    """
    if result.best.score.low is None:
        prompts, lost = result.clusters.prompts, result.undefined.best
        undefined = f", {lost} test score{'s' * (lost != 1)} undefined" if lost else ""
        count = f"{prompts} test prompt{'s' * (prompts != 1)}{undefined}"
        return f"has no interval ({count}) to compare by"
    records = result.controls.linear()
    cleared = [name for name in records if name not in result.not_beyond]

    def listed(names: list[str], before: str) -> str:
        return ", ".join(
            f"{control_title(name)} ({before} {records[name].difference}"
            f"{_on(records[name].samples)}{_large_p(records[name])})"
            for name in names
        )

    clauses = [f"is above {listed(cleared, 'by')}"] if cleared else []
    if result.not_clear:
        missed = f"not clearly above {listed(result.not_clear, 'by')}"
        clauses.append(f"but {missed}" if cleared else f"is {missed}")
    if result.not_compared:
        unknown = listed(result.not_compared, "difference")
        clauses.append(f"{'and ' if clauses else ''}has no interval to compare it with {unknown}")
    return ", ".join(clauses)


def partial_input_lines(
    records: Mapping[str, VectorRecord | ClassMapRecord | NumberRecord], training: int
) -> list[str]:
    """Return a sentence for each input control whose probes had fewer training images.

    Args:
        records: results of several components together, or of numbers per image, by name.
        training: number of training images of the run.
    """
    counts = {name: part for one in records.values() for name, part in one.partial_inputs.items()}
    return [
        f"Probes of {control_title(name)} are fitted to {count['train']} training images and "
        f"scored on {count['test']} test images; those of the best cell are fitted to {training}, "
        "which may be a part of the difference."
        for name, count in counts.items()
    ]
