"""Titles of controls and metrics, and the words on which of them a probe exceeds.

The command line imports this module, so it must not import torch or a plotting library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ldmprobe_core.analysis.controls.records import (
    ClassMapRecord,
    ControlRecord,
    NumberRecord,
    VectorRecord,
)
from ldmprobe_core.analysis.records import PropertyRecord, Summary
from ldmprobe_core.errors import counted, verb
from ldmprobe_core.probing.inference.bootstrap import MINIMUM_CLUSTERS
from ldmprobe_core.study.conditions import CONDITIONS, controls
from ldmprobe_core.study.layers import INPUT_CONTROLS
from ldmprobe_core.study.probe_kinds import PROBE_KINDS
from ldmprobe_core.study.properties import PROPERTIES

_BASELINE_TITLES = {
    "position": "position alone",
    "latents": "the latents alone",
    "clean_pixels": "the predicted clean image's pixels",
    "prompt": "the prompt alone",
    "same_prompt": "its own maps on other images of the same prompt",
}


_METRIC_TITLES = {
    "spearman": "rank correlation",
    "spearman_partial": "partial rank correlation",
    "dice": "Dice",
    "auroc": "AUROC",
}


def metric_title(name: str) -> str:
    """Return a metric's title for sentences and axes."""
    return _METRIC_TITLES.get(name, name)


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


def named_controls(summary: Summary) -> str:
    """List the controls that a run's properties have, and what position alone is."""
    names = dict.fromkeys(
        name for result in summary.properties.values() for name in result.controls.linear()
    )
    explained = {"position": "position alone, which is the mean map of the training labels"}
    return ", ".join(explained.get(name, control_title(name)) for name in names)


def not_exceeded(result: PropertyRecord) -> str:
    """List the controls that the best probe does not clearly exceed; a dash if there are none.

    Those that clearly exceed the probe follow after ``below:``, and controls that it cannot be
    compared with after ``no interval:``; if there is no interval for any control, the text is
    ``no interval``.
    """
    if not any(record.compared for record in result.controls.linear().values()):
        return "no interval"
    texts = []
    if result.not_clear:
        texts.append(", ".join(map(control_title, result.not_clear)))
    if result.below:
        texts.append(f"below: {', '.join(map(control_title, result.below))}")
    if result.not_compared:
        texts.append(f"no interval: {', '.join(map(control_title, result.not_compared))}")
    return "; ".join(texts) or "–"


def _on(samples: dict[str, int] | None) -> str:
    """Format the number of test images that a control covers; empty if it covers all of them."""
    return "" if samples is None else f" on {counted(samples['test'], 'test image')}"


def _large_p(record: ControlRecord) -> str:
    """Format the p value of a control, if it alone keeps the control from being exceeded."""
    is_cause = record.difference.low is not None and record.difference.low > 0
    return f", p = {record.p:.3f}" if is_cause and record.p and not record.exceeded else ""


def against(result: PropertyRecord) -> str:
    """Return the clause on the controls: those the best probe exceeds, those not, those above it.

    Each control is given with the paired difference of the best probe and the control's own best
    cell.  With too few test prompts there is no interval, for the probe or for a control that was
    computed on a part of the samples, and the clause says so.
    """
    if result.best.score.low is None:
        prompts, lost = result.clusters.prompts, result.undefined.best
        undefined = f", {counted(lost, 'test score')} undefined" if lost else ""
        count = f"{counted(prompts, 'test prompt')}{undefined}"
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
    verb = "but" if cleared else "is"
    if result.not_clear:
        clauses.append(f"{verb} not clearly above {listed(result.not_clear, 'by')}")
        verb = "and"
    if result.below:
        clauses.append(f"{verb} below {listed(result.below, 'difference')}")
    if result.not_compared:
        unknown = listed(result.not_compared, "difference")
        clauses.append(f"{'and ' if clauses else ''}has no interval to compare it with {unknown}")
    return ", ".join(clauses)


def input_sentence(result: PropertyRecord) -> str:
    """Name the steps of the onset's interval at which probes do not exceed those of an input.

    What the denoiser's input gives as well at such a step, its activations need not add.  Empty if
    there is no such step or no interval.
    """
    onset = result.emergence.probe.relative.onset
    if onset.low is None:
        return ""
    inputs: dict[tuple[int, ...], list[str]] = {}
    for name in INPUT_CONTROLS:
        lows = {
            record.step: record.less_inputs[name].low
            for record in result.steps[onset.low - 1 : onset.high]
            if name in record.less_inputs
        }
        missed = tuple(step for step, low in lows.items() if low is not None and low <= 0)
        if missed:
            inputs.setdefault(missed, []).append(name)
    if not inputs:
        return ""
    metric = result.steps[0].metric
    # Only a partial metric leaves position out; without one, the main metric is compared.
    how = "apart from position" if metric.endswith("_partial") else f"in {metric_title(metric)}"
    clauses = [
        f" At step{'s' * (len(steps) > 1)} {_ranges(steps)}, probes are not clearly above "
        f"{joined(names)} ({how})."
        for steps, names in inputs.items()
    ]
    return "".join(clauses)


def _ranges(numbers: Sequence[int]) -> str:
    """Format ascending numbers with their ranges, such as ``1 to 3, 5 and 8``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = []
    for run in runs:
        texts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(number) for number in run]
    *others, last = texts
    return f"{', '.join(others)}{' and ' if others else ''}{last}"


def empty_masks_sentence(result: PropertyRecord, samples: int) -> str:
    """Say how many label masks are empty, which an empty prediction scores 1 on.

    Args:
        result: results of a property.
        samples: number of test samples.

    Returns:
        the sentence with a space before it; empty if no label mask is empty.
    """
    empty, both = result.undefined.truth_empty, result.undefined.both_empty
    if not empty:
        return ""
    if empty == 1:
        rest = "it scores 1 as its prediction is empty too" if both else "its prediction is not"
        return f" 1 of {counted(samples, 'label mask')} is empty; {rest}."
    scores = verb(both, "scores", "score")
    return f" {empty} of {samples} label masks are empty; {both} of them {scores} 1 as empty too."


def difference_sentences(summary: Summary, keep: str) -> str:
    """Say how the differences between the best probes and their controls are computed.

    Args:
        summary: summary of a run.
        keep: its study's ``capture.keep``.
    """
    records = [result.controls.linear() for result in summary.properties.values()]
    names = dict.fromkeys(name for one in records for name in one)
    inputs = [name for name in names if name in INPUT_CONTROLS]
    parts = [n for n in names if any(n in one and one[n].samples is not None for one in records)]
    text = (
        "The differences are taken sample by sample, over the test samples in which both scores "
        "are defined."
    )
    refitted = keep != "statistics"
    if inputs and refitted:
        text += (
            f" Those to {joined(inputs)} are corrected for the number of training images, if these "
            f"have at least {2 * MINIMUM_CLUSTERS} prompts (delete-half jackknife)."
        )
    if parts:
        how = "has all training samples nevertheless"
        if refitted:
            how = "is fitted again to the training samples of the control"
        text += f" {_capital(joined(parts))}: computed on fewer samples; the probe {how}."
    if parts or (inputs and refitted):
        text += " Such a difference need not equal that of the two scores above."
    return text


def few_categories_sentence(summary: Summary) -> str:
    """Say that intervals hold for the images' categories alone, if these are too few to resample.

    Returns:
        the sentence with a space before it; empty if categories are resampled or not known, or if
        there are no intervals.
    """
    clusters = [result.clusters for result in summary.properties.values()]
    n = max((one.few_categories or 0 for one in clusters if one.wider), default=0)
    if not n:
        return ""
    known = "one category" if n == 1 else f"{n} categories, too few to be resampled"
    alone = "it" if n == 1 else "these"
    return f" The test images are of {known}: intervals hold for {alone} alone, not for others."


def fixed_cut_sentence(name: str, result: PropertyRecord) -> str:
    """Warn of a mask's best probe that has a fixed cut; empty if its cut was chosen on samples.

    Controls of the same kind then have the fixed cut too, so their masks may be empty although
    their values order the pixels well.

    Args:
        name: name of the property.
        result: its results.
    """
    if not (name in PROPERTIES and PROPERTIES[name].is_mask and _has_fixed_cut(result.best.kind)):
        return ""
    alike = [n for n, c in result.controls.linear().items() if _has_fixed_cut(c.own_best.kind)]
    text = " Its probes have the fixed cut of the published protocol"
    if alike:
        text += (
            f", and so have {joined(alike)}: their masks may be empty for the cut alone, so that "
            "the difference to them is no evidence"
        )
    area = result.best.other.get("auroc")
    return text + ("." if area is None else f". AUROC, which needs no cut, is {area}.")


def _has_fixed_cut(kind: str | None) -> bool:
    return kind in PROBE_KINDS and PROBE_KINDS[kind].fixed_cut is not None


def joined(names: list[str]) -> str:
    """Join the titles of controls, as ``a, b and c``."""
    *others, last = map(control_title, names)
    return f"{', '.join(others)}{' and ' if others else ''}{last}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


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
        f"Probes of {control_title(name)} are fitted to "
        f"{counted(count['train'], 'training image')} "
        f"and scored on {counted(count['test'], 'test image')}; those of the best cell are fitted "
        f"to {training}, which may be a part of the difference."
        for name, count in counts.items()
    ]
