"""Tables and sentences about the effects of interventions, in reports and on the command line."""

from __future__ import annotations

from ldmprobe_core.analysis.controls.wording import metric_title
from ldmprobe_core.analysis.report.text import number
from ldmprobe_core.errors import counted
from ldmprobe_core.interventions.measures.scores import OWN_LABEL
from ldmprobe_core.interventions.null_directions import NULLS
from ldmprobe_core.interventions.results import EffectRecord, InterventionSummary, SiteRecord
from ldmprobe_core.interventions.spec import DONOR, EDITED, ERASURES, PROBE_EDITS
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.study.layers import LATENTS, short_layer

_NO_INTERVAL = "no intervals, as too few distinct prompts have a score"


def intervention_title(summary: InterventionSummary) -> str:
    """Describe an intervention in one line: property, method, sites, and number of pairs."""
    spec, first = summary.intervention, summary.sites[0]
    where = f"{len(first.layers)} layers together, steps {first.first} to {first.last}"
    if len(first.layers) == 1:
        where = f"{site_layer(first)}, steps {first.first} to {first.last}"
    if spec.windows:
        where = "one layer at a time"
        if spec.windows > 1:
            where = f"one layer and one of {spec.windows} windows of steps at a time"
    how = "" if spec.method == DONOR else f", {summary.kind} probes"
    if spec.method in ERASURES:
        how = ""
    pairs = f"{counted(summary.pairs, 'pair')} of sample and target"
    if not has_targets(summary):
        pairs = counted(summary.pairs, "sample")
    if summary.unedited.low is None:
        pairs += f", {_NO_INTERVAL}"
    text = f"{spec.prop}, {spec.method}{how}: {where}; {pairs}"
    return f"{text}; {counted(summary.undefined, 'score')} undefined" if summary.undefined else text


def has_targets(summary: InterventionSummary) -> bool:
    """Return whether an intervention edits towards target maps, unlike erasures and donor edits."""
    return summary.intervention.method in PROBE_EDITS


def effect_sign(method: str) -> int:
    """Return an effect's sign if the denoiser uses the edited property: -1 for erasures, else 1.

    An erasure is scored against the sample's own label, so a use lowers the score.
    """
    return -1 if method in ERASURES else 1


def agreement_title(summary: InterventionSummary) -> str:
    """Return the main metric's title for a score with the target, such as ``Dice with target``."""
    metric, reference = metric_title(summary.metric), "target"
    if not has_targets(summary):
        reference = summary.intervention.target_names[0]
    return f"{metric} with {reference}"


def site_layer(site: SiteRecord) -> str:
    """Return a short name of the layer of an edit site that has one layer."""
    return "denoiser's input" if site.layers[0] == LATENTS else short_layer(site.layers[0])


def effect_rows(summary: InterventionSummary) -> list[dict[str, str]]:
    """Build the table of an intervention's effects.

    A causal map has a row for each layer, with the effect in each window of steps.  Otherwise the
    table has a row for the unedited images, and one for each dose and condition.
    """
    if summary.intervention.windows:
        return _map_rows(summary)
    metric = agreement_title(summary)
    rows = [{"image": "unedited", metric: number(summary.unedited)}]
    several = len(summary.sites) > 1
    for site in summary.sites:
        for condition, effect in site.effects.items():
            title = _condition_title(condition)
            if condition == "permuted" and effect.directions is not None:
                title += f" ({counted(effect.directions, 'permutation')})"
            row = {"image": title, metric: number(effect.mean)}
            if several:
                row = {"dose": "–" if site.dose is None else f"{site.dose:g}", **row}
            rows.append(row | _details(effect, summary.intervention.method))
    keys = list(dict.fromkeys(key for row in reversed(rows) for key in row))
    return [{key: row.get(key, "") for key in keys} for row in rows]


def _condition_title(condition: str) -> str:
    """Return the title of a condition: the edit itself, or one of its null edits."""
    return condition if condition == EDITED else NULLS[condition].title


def _details(effect: EffectRecord, method: str) -> dict[str, str]:
    """Build the columns of a table row that depend on the intervention's method."""
    row = {
        "less unedited": number(effect.less_unedited),
        "edit less this": number(effect.edit_less_this) if effect.edit_less_this else "",
    }
    # For an erasure, the main score already is the agreement with the sample's own label, so the
    # table needs no column ``with own label``.
    if OWN_LABEL in effect.measures and method not in ERASURES:
        row["with own label"] = number(effect.measures[OWN_LABEL])
    if effect.halfway is not None:
        row |= {
            "more than half way": f"{effect.halfway * 100:.0f}%",
            "ghost": number(effect.measures["ghost"]),
        }
    if effect.vanished is not None:
        row["mask vanished"] = f"{effect.vanished * 100:.0f}%"
    return row | {
        "change elsewhere": number(effect.outside),
        "class kept": "–" if effect.kept is None else f"{effect.kept * 100:.0f}%",
    }


def clear_of_zero(effect: Interval) -> bool:
    """Return whether an interval excludes zero; False without an interval."""
    return (
        effect.low is not None and effect.high is not None and (effect.low > 0 or effect.high < 0)
    )


def _map_rows(summary: InterventionSummary) -> list[dict[str, str]]:
    """Build a row for each layer of a causal map, with its effect in each window of steps."""
    rows: dict[str, dict[str, str]] = {}
    for site in summary.sites:
        row = rows.setdefault(site.layers[0], {"layer": site_layer(site)})
        row[f"steps {site.first}-{site.last}"] = number(site.used)
    return list(rows.values())


def map_sentence(summary: InterventionSummary) -> str:
    """Say in which layers and steps of a causal map the edit has an effect, and where it has none.

    The effect of an erasure is a lower score, and that of other edits a higher one.
    The intervals are not corrected for the number of cells, and the sentence says so.  It also has
    the number of cells with the opposite effect: without any effect, both numbers would be alike.
    Cells without an interval say nothing of an effect, so they are not among the cells counted.
    The denoiser's input is not a layer, so the sentence leaves it out.
    """
    against = "the null edit" if "orthogonal" in summary.sites[0].effects else "the unedited images"
    rows = [site for site in summary.sites if site.layers[0] != LATENTS]
    if not rows:
        return "Only the denoiser's input is edited, and no layer."
    sign = effect_sign(summary.intervention.method)
    edit = "edit" if sign > 0 else "erasure"
    cells = [site for site in rows if site.used.low is not None]
    without = len(rows) - len(cells)
    if not cells:
        return (
            f"Whether the {edit} has an effect is not determined in any of "
            f"{counted(len(rows), 'cell')}: {_NO_INTERVAL}."
        )
    clear = [site for site in cells if clear_of_zero(site.used)]
    used = [site for site in clear if sign * (site.used.mean or 0.0) > 0]
    opposite = len(clear) - len(used)
    raises, lowers = ("raises", "lowers") if sign > 0 else ("lowers", "raises")
    text = (
        f"In {len(used)} of {counted(len(cells), 'cell')} the {edit} {raises} the "
        f"{agreement_title(summary)} {'above' if sign > 0 else 'below'} that of {against}, with an "
        f"interval clear of zero, and in {opposite} it {lowers} it (intervals are not corrected "
        "for the number of cells)"
    )
    if without:
        text += f"; not determined in {without} of {counted(len(rows), 'cell')} ({_NO_INTERVAL})"
    if not used:
        return text + "."
    best = max(used, key=lambda site: sign * (site.used.mean or 0.0))
    read = max(cells, key=lambda site: _mean(site.decodable))
    # A cell that is not clear of zero may have a larger mean.
    where = f"{site_layer(best)}, steps {best.first} to {best.last}"
    text += f"; of the cells clear of zero, most in {where}: {number(best.used)}"
    if best.decodable is not None:
        text += f", where probes have a score of {number(best.decodable)}"
    text += "."
    if read.decodable is None or read is best:
        return text
    return text + (
        f" Probes read {summary.intervention.prop} best in {site_layer(read)}, steps {read.first} "
        f"to {read.last} ({number(read.decodable)}); the {edit} there has the effect "
        f"{number(read.used)}."
    )


def readings_sentence(summary: InterventionSummary) -> str | None:
    """Write a sentence on the scores of the run's probes after an erasure; None for other methods.

    Of several sites, it is about the one where the erasure lowers the score of the images most.  It
    names the probes that read most among those in the erased layers, and among those in layers that
    the denoiser computes later.
    """
    site = min(summary.sites, key=lambda site: _mean(site.used, undefined=float("inf")))
    readings = site.effects[EDITED].readings
    if not readings:
        return None
    layers = list(dict.fromkeys(reading.layer for reading in readings))
    erased = [layer for layer in layers if layer in site.layers]
    later = [
        layer for layer in layers[layers.index(erased[0]) if erased else 0 :] if layer not in erased
    ]
    parts = []
    first = "the erased layers" if len(erased) > 1 else "the erased layer"
    for title, group in ((first, erased), ("later layers", later)):
        candidates = [reading for reading in readings if reading.layer in group]
        if candidates:
            best = max(candidates, key=lambda reading: _mean(reading.score))
            parts.append(
                f"in {title} the {best.kind} probe of {short_layer(best.layer)} reads most "
                f"({number(best.score)}, {number(best.less_unedited)} from its score without edits)"
            )
    where = f" in {site_layer(site)}" if len(site.layers) == 1 else ""
    return (
        f"After the erasure{where}, steps {site.first} to {site.last}, {' and '.join(parts)}. The "
        "probes were fitted without edits, so a lower score does not show that nothing is left."
    )


def _mean(value: Interval | None, undefined: float = float("-inf")) -> float:
    """Return the mean of an interval, or ``undefined`` if there is none."""
    return undefined if value is None or value.mean is None else value.mean
