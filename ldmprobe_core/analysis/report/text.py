"""Sentences and table rows that present a summary on terminals, in artifacts and in reports.

The command line imports this module, so it must not import torch or a plotting library, which
would make every command start slowly.
"""

from __future__ import annotations

from ldmprobe_core.analysis.classes.records import ClassesRecord
from ldmprobe_core.analysis.controls.wording import (
    against,
    control_columns,
    empty_masks_sentence,
    fixed_cut_sentence,
    input_sentence,
    metric_title,
)
from ldmprobe_core.analysis.records import CurveRecord, LeadsRecord, PropertyRecord, Summary
from ldmprobe_core.errors import counted, verb
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.probing.inference.emergence import Crossing, Lead
from ldmprobe_core.study.layers import short_layer
from ldmprobe_core.study.properties import PROPERTIES, property_of


def number(interval: Interval | None) -> str:
    """Format a mean with its interval, as `Interval` does; a dash if there is none."""
    return "–" if interval is None else str(interval)


def step(value: Crossing) -> str:
    """Format a step with its interval, as ``3 [2, 4]``; a dash if the step is undefined.

    ``>15`` stands for a step after the last one.  If the interval is too wide to determine the
    step, only the interval is given.
    """
    last = len(value.distribution)
    if not last:
        return "–"
    low, high = (f">{last}" if end is None else str(end) for end in (value.low, value.high))
    if not value.determined:
        return f"not determined [{low}, {high}]"
    return f"{value.step} [{low}, {high}]"


def lead(value: Lead) -> str:
    """Format a lead with its interval, as ``7 [6, 8]``; a dash if the lead is undefined."""
    if value.low is None or value.high is None:
        return "–" if value.steps is None else "not determined (no bounds)"
    if not value.determined:
        return f"not determined [{value.low}, {value.high}]"
    return f"{value.steps} [{value.low}, {value.high}]"


def best_rows(summary: Summary) -> list[dict[str, str]]:
    """Build the main table: best and last scores, controls and emergence by property.

    The columns of controls show their scores in their own best cells.
    """
    columns = control_columns(summary)
    rows = []
    for name, result in summary.properties.items():
        best, emergence, records = result.best, result.emergence, result.controls.by_name()
        rows.append(
            {
                "property": name,
                "metric": metric_title(best.metric),
                "best": number(best.score),
                "at": f"step {best.step}, {short_layer(best.layer)}, {best.kind}",
                "last step": number(result.last.score),
                **{
                    heading: number(records[key].own_best.score) if key in records else "–"
                    for key, heading in columns.items()
                },
                "above position": _above_position(result),
                "onset": step(emergence.probe.relative.onset),
                "image onset": step(emergence.decoded.relative.onset),
                "settled": step(emergence.probe.relative.settled),
                "image settled": step(emergence.decoded.relative.settled),
                "lead": lead(result.leads.decoded.onset),
                "lead over clean": lead(result.leads.clean.onset),
            }
        )
    return rows


def _above_position(result: PropertyRecord) -> str:
    """Say whether the best probe exceeds position alone."""
    if "position" in result.below:
        return "no, below"
    if result.controls.position.exceeded:
        return "yes"
    return "not clearly" if result.controls.position.compared else "no interval"


def property_title(name: str) -> str:
    """Return a property's title with a capital first letter, for the start of a sentence.

    If this process does not know the property, the title is the name with spaces.
    """
    title = PROPERTIES[name].title if name in PROPERTIES else name.replace("_", " ")
    return title[:1].upper() + title[1:]


def headline(summary: Summary) -> list[str]:
    """Return sentences that summarise the results: one for each property, and one on classes."""
    lines = []
    for name, result in summary.properties.items():
        best, last = result.best, result.last
        if clause := unmeasured_clause(result, summary.samples["test"]):
            lines.append(f"{property_title(name)}: {clause}.")
            continue
        line = (
            f"{property_title(name)}: at the last step the best probe scores {number(last.score)} "
            f"({metric_title(best.metric)}); the best cell, {number(best.score)}, "
            f"{against(result)}."
        )
        # With too few test prompts, a score has no confidence interval and therefore no onset step.
        # The sentence already gives that reason, so add no sentence on the onset.
        if best.score.low is not None:
            line += empty_masks_sentence(result, summary.samples["test"])
            line += fixed_cut_sentence(name, result) + _onset_sentence(result)
        lines.append(line + missing_sentence(result))
    if summary.classes is not None:
        lines.append(classes_line(summary.classes))
    return lines


def unmeasured_clause(result: PropertyRecord, samples: int) -> str:
    """Return the clause on a property of which nothing is measured; empty if something is.

    Args:
        result: results of the property.
        samples: number of test samples.
    """
    undefined = result.undefined
    if undefined.truth_empty == samples:
        masks = f"all {samples} label masks of the test images are"
        if samples == 1:
            masks = "the label mask of the only test image is"
        return f"{masks} empty, so nothing is measured"
    if undefined.constant is not None:
        images = "only test image" if samples == 1 else f"{samples} test images"
        return (
            f"all labels of the {images} have the same value "
            f"({undefined.constant:g}), so nothing is measured"
        )
    if result.best.score.mean is None:
        return (
            f"the {metric_title(result.best.metric)} of its probes is undefined in every test "
            "image, as where the labels or the predictions do not vary within an image, so that "
            "nothing can be compared"
        )
    return ""


_NAMED_CELLS = 10
"""Number of cells with non-finite activations that a warning names."""


def warning_lines(summary: Summary, keep: str) -> list[str]:
    """List what a reader must know of a run's samples and scores; empty if nothing is unusual.

    These are activations that are not finite, undefined scores, empty masks, and labels that were
    not measured.

    Args:
        summary: summary of the run.
        keep: ``capture.keep`` of the study.
    """
    lines = [_nonfinite_line(summary, keep)]
    for name, result in summary.properties.items():
        if result.undefined.constant is not None:
            lines.append(f"{name}: {unmeasured_clause(result, summary.samples['test'])}.")
            continue
        undefined, parts = result.undefined, _fewer_images(result.leads)
        if undefined.unchosen:
            parts.append(
                "no validation score is defined in any cell, so nothing could be chosen, and the "
                "best cell is the first one"
            )
        if undefined.any:
            parts.append(
                f"{undefined.best} of {counted(summary.samples['test'], 'test score')} of the best "
                f"cell {verb(undefined.best)} undefined and excluded from its "
                f"mean ({undefined.any} over all cells)"
            )
        if undefined.truth_empty and property_of(name).is_mask:
            many, both = undefined.truth_empty > 1, undefined.both_empty
            masks = f"{undefined.truth_empty} label masks are" if many else "1 label mask is"
            how = f"{both} of them " if many else "" if both else "not "
            scored = " and scored 1" if many or both else ""
            parts.append(f"{masks} empty, {how}predicted empty too{scored}")
        parts += [
            f"{control} control: {counted(record.undefined, 'score')} undefined"
            for control, record in result.controls.by_name().items()
            if record.undefined
        ]
        if result.missing:
            parts.append(
                f"{result.missing:.1%} of the pixels of its labels are not measured: grey in the "
                "figures, left out of fits and scores"
            )
        lines.append(f"{name}: {'; '.join(parts)}." if parts else "")
    return [line for line in lines if line]


def _fewer_images(leads: LeadsRecord) -> list[str]:
    """List the leads of fewer images than have step images, as scores are undefined in others."""
    rivals = leads.decoded, leads.clean, leads.decoded_recalibrated, leads.clean_recalibrated
    # A lead over a labeler that was not recalibrated, or of too few images, does not exist.
    counts = [
        one.samples
        for one in rivals
        if one.samples and (one.onset.steps is not None or one.settled.steps is not None)
    ]
    least = min(counts, default=leads.samples)
    if least == leads.samples:
        return []
    return [
        f"leads are of {least} or more of {leads.samples} images, those in which the scores of "
        "both probes and labeler are defined at every step"
    ]


def _nonfinite_line(summary: Summary, keep: str) -> str:
    """Say how many activations are not finite, and in which cells; empty if all are finite."""
    if not summary.nonfinite and not summary.nonfinite_permuted:
        return ""
    text = f"Non-finite activation values: {summary.nonfinite}"
    if summary.nonfinite_permuted is not None:
        text += f"; in the untrained denoiser {summary.nonfinite_permuted}"
    # Of training samples of which only sums are kept, the number that is left out is not known.
    left_out = "held-out sample" if keep == "statistics" else "sample"
    cells = [
        f"step {cell.step} of {short_layer(cell.layer)}"
        f"{' (untrained)' if cell.network == 'permuted' else ''}: {cell.share * 100:.2g}% of its "
        f"values, {counted(cell.samples, left_out)} left out"
        for cell in summary.nonfinite_cells[:_NAMED_CELLS]
    ]
    more = len(summary.nonfinite_cells) - len(cells)
    cells += [f"and {counted(more, 'more cell')} (summary.json)"] if more else []
    return f"{text}{': ' if cells else ''}{'; '.join(cells)}."


def missing_sentence(result: PropertyRecord) -> str:
    """Say which share of a property's labels is not measured, after a space; empty if none is."""
    if not result.missing:
        return ""
    return f" {result.missing:.1%} of the pixels of its labels are not measured."


def classes_line(classes: ClassesRecord) -> str:
    """Write the sentences on the class labeler: when it recognises the class, and how surely."""
    return (
        f"Class: {recognition_sentence(classes)} {classes.confident * 100:.1f}% of final images "
        "have a top probability above 90%."
    )


def recognition_sentence(classes: ClassesRecord) -> str:
    """Write the sentence on the step from which the class labeler recognises the target class.

    It begins in lower case.  The mean steps are of the images in which the class leads at the last
    step, which need not be the same ones in the decoded latents and in the predicted clean image.
    Where only some steps have images, they are of these, which the sentence names.
    """
    decoded, clean = classes.recognition_step["trajectory"], classes.recognition_step["clean"]
    among = _among_steps(classes)
    target = "prompt's class" if classes.by_prompt else "final image's top class"
    text = (
        f"the {target} leads in the decoded latents of the last step in "
        f"{classes.recognized * 100:.1f}% of {counted(classes.samples, 'image')} "
        "whose steps were decoded"
    )
    if decoded.mean is not None:
        text += f", on average from step {number(decoded)} on{among}"
    if classes.recognized_clean is None:
        if clean.mean is None:
            return f"{text}."
        return (
            f"{text}; in the predicted clean image, on average from step {number(clean)} on{among} "
            "in the images in which it leads at the last step there."
        )
    text += f"; in the predicted clean image of that step in {classes.recognized_clean * 100:.1f}%"
    if clean.mean is not None:
        text += f", on average from step {number(clean)} on{among}"
    return f"{text}."


def _among_steps(classes: ClassesRecord) -> str:
    """Return the clause that names the steps with images; empty if all steps have images.

    The class may lead from a step on that has no image, before the first at which it is seen.
    """
    shares = classes.agreement.get("trajectory", [])
    known = [str(number) for number, share in enumerate(shares, start=1) if share is not None]
    return "" if len(known) == len(shares) else f" (of the steps with images: {', '.join(known)})"


def _onset_sentence(result: PropertyRecord) -> str:
    """Write the sentence on the onset steps of the probes and of the image labeler."""
    probe = result.emergence.probe.relative.onset
    decoded = result.emergence.decoded.relative.onset
    chosen = short_layer(result.layer.name)
    if not probe.distribution:
        reason = _undefined_reason(result.emergence.probe, f" of probes of {chosen}")
        return f" Its onset is undefined{reason}."
    total, tied = sum(result.layer.resplits.values()), len(result.layer.tied)
    # Re-splits choose among the tied layers only, so with one they have no choice.
    if total and tied > 1:
        number_of_choices = result.layer.resplits.get(result.layer.name, 0)
        chosen += (
            f" (of {tied} layers within one standard error, the one that {number_of_choices} of "
            f"{total} re-splits choose)"
        )
    sentence = f" Probes of {chosen} keep half of their gain {_from(probe)}"
    if probe.determined and probe.step is not None:
        sentence += f" (by then in {probe.distribution[probe.step - 1]:.0%} of the resamples)"
    if result.emergence.decoded.undefined_because == "no_labeler":
        return f"{sentence}.{input_sentence(result)}"
    if not decoded.distribution:
        return (
            f"{sentence}; the onset of the labeler on the step's decoded latents is undefined"
            f"{_undefined_reason(result.emergence.decoded)}.{input_sentence(result)}"
        )
    return (
        f"{sentence}, the labeler on the step's decoded latents keeps half of its own "
        f"{_from(decoded)}{_lead_clause(result.leads)}{input_sentence(result)}"
    )


def spread_sentence(summary: Summary, keep: str) -> str:
    """Say what variation the intervals of onset and settled steps include.

    Args:
        summary: summary of a run.
        keep: its study's ``capture.keep``.
    """
    counts = [sum(result.layer.resplits.values()) for result in summary.properties.values()]
    if total := max(counts, default=0):
        return (
            f"Intervals include the spread between test samples and {total} other divisions of "
            "the remaining samples into training and validation, each with ridge probes of the "
            "layer that it chooses among those within one standard error of the best."
        )
    reason = "the training samples are of a single prompt, which cannot be divided"
    if keep == "statistics":
        reason = "the activations of training samples are not stored to divide them again"
    return f"Intervals include the spread between test samples only, because {reason}."


def _undefined_reason(curve: CurveRecord, whose: str = "") -> str:
    """Return the clause on why a curve has no onset; empty if the summary does not tell.

    Args:
        curve: the curve.
        whose: words on what is scored.  The best cell may be of another layer than the curve, and
            above position where the curve is not.
    """
    if curve.undefined_because == "not_above_position":
        return f", as the score{whose} at the last step is not clearly above that of position alone"
    if curve.undefined_because == "too_few_prompts":
        return (
            f", as too few test prompts have a score{whose}, and one of position alone, at every "
            "step"
        )
    return ""


def _from(value: Crossing) -> str:
    """Format an onset step as ``from step 3 [2, 4]``, or say that it is not determined."""
    if value.determined:
        return f"from step {step(value)}"
    return f"from a step that is {step(value)}"


def _lead_clause(leads: LeadsRecord) -> str:
    """Return the clause that says by how many steps the probes' onset precedes the labeler's."""
    decoded, clean = (_steps(lead(one.onset)) for one in (leads.decoded, leads.clean))
    if leads.decoded_recalibrated.onset.low is not None:
        recalibrated = _steps(lead(leads.decoded_recalibrated.onset))
        decoded += f" ({recalibrated} with its maps recalibrated to the labels)"
    return (
        ". At half of the probes' gain, the same height for both, the lead of the probes over the "
        f"labeler on decoded latents is {decoded}, and over the labeler on the predicted clean "
        f"image {clean}."
    )


def _steps(lead: str) -> str:
    """Add the unit to a formatted lead, and replace the dash of an undefined one by a word."""
    if lead == "–":
        return "undefined"
    return lead if lead.startswith("not determined") else f"{lead} steps"
