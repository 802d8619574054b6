"""Tables and sentences about the effects of interventions, in reports and on the command line."""

from __future__ import annotations

from ldmprobe_core.analysis.report.text import metric_title, number, short_layer
from ldmprobe_core.interventions.nulls import NULLS
from ldmprobe_core.interventions.results import EffectRecord, InterventionSummary, SiteRecord
from ldmprobe_core.interventions.spec import DONOR, EDITED, ERASURES
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.study.layers import LATENTS


def intervention_title(summary: InterventionSummary) -> str:
    """Describe an intervention in one line: property, method, sites, and number of pairs."""
    spec, first = summary.intervention, summary.sites[0]
    where = f"{len(first.layers)} layers together, steps {first.first} to {first.last}"
    if len(first.layers) == 1:
        where = f"{site_layer(first)}, steps {first.first} to {first.last}"
    if spec.windows:
        where = f"one layer and one of {spec.windows} windows of steps at a time"
    how = "" if spec.method == DONOR else f", {summary.kind} probes"
    if spec.method in ERASURES:
        how = ""
    text = f"{spec.prop}, {spec.method}{how}: {where}; {summary.pairs} pairs of sample and target"
    return f"{text}; {summary.undefined} scores undefined" if summary.undefined else text


def site_layer(site: SiteRecord) -> str:
    """Return a short name of the first layer of a site, for sites that have one layer."""
    return "denoiser's input" if site.layers[0] == LATENTS else short_layer(site.layers[0])


def effect_rows(summary: InterventionSummary) -> list[dict[str, str]]:
    """Build the table of an intervention.

    A causal map has a row for each layer, with the effect in each window of steps.  Otherwise the
    table has a row for the unedited images, and one for each dose and condition.
    """
    if summary.intervention.windows:
        return _map_rows(summary)
    metric = f"{metric_title(summary.metric)} with target"
    rows = [{"image": "unedited", metric: number(summary.unedited)}]
    several = len(summary.sites) > 1
    for site in summary.sites:
        for condition, effect in site.effects.items():
            row = {"image": _condition_title(condition), metric: number(effect.mean)}
            if several:
                row = {"dose": "–" if site.dose is None else f"{site.dose:g}", **row}
            rows.append(row | _details(effect))
    keys = list(dict.fromkeys(key for row in reversed(rows) for key in row))
    return [{key: row.get(key, "") for key in keys} for row in rows]


def _condition_title(condition: str) -> str:
    return condition if condition == EDITED else NULLS[condition].title


def _details(effect: EffectRecord) -> dict[str, str]:
    """Build the further columns of a condition's row."""
    row = {
        "less unedited": number(effect.less_unedited),
        "edit less this": number(effect.edit_less_this) if effect.edit_less_this else "",
    }
    if effect.halfway is not None:
        row |= {
            "more than half way": f"{effect.halfway * 100:.0f}%",
            "ghost": number(effect.measures["ghost"]),
        }
    return row | {
        "change elsewhere": number(effect.outside),
        "class kept": "–" if effect.kept is None else f"{effect.kept * 100:.0f}%",
    }


def clear_of_zero(effect: Interval) -> bool:
    """Whether an interval excludes zero; False without an interval."""
    return (
        effect.low is not None and effect.high is not None and (effect.low > 0 or effect.high < 0)
    )


def _map_rows(summary: InterventionSummary) -> list[dict[str, str]]:
    """Build a row for each layer of a causal map, with its effect in each window of steps."""
    rows: dict[tuple[str, float | None], dict[str, str]] = {}
    doses = len({site.dose for site in summary.sites}) > 1
    for site in summary.sites:
        row = rows.setdefault((site.layers[0], site.dose), {"layer": site_layer(site)})
        if doses:
            row["dose"] = f"{site.dose:g}"
        row[f"steps {site.first}-{site.last}"] = number(site.used)
    return list(rows.values())


def map_sentence(summary: InterventionSummary) -> str:
    """Say in which layers and steps of a causal map the edit has an effect, and where it has none.

    The intervals are not corrected for the number of cells, and the sentence says so.  The
    denoiser's input is not a layer, so the sentence leaves it out.
    """
    against = "the null edit" if "orthogonal" in summary.sites[0].effects else "the unedited images"
    cells = [site for site in summary.sites if site.layers[0] != LATENTS]
    helped = [site for site in cells if clear_of_zero(site.used) and (site.used.low or 0) > 0]
    text = (
        f"In {len(helped)} of {len(cells)} cells the edit raises the "
        f"{metric_title(summary.metric)} with the target above {against}, with an interval clear "
        "of zero (not corrected for the number of cells)"
    )
    if not helped:
        return text + "."
    best = max(helped, key=lambda site: site.used.mean or 0.0)
    read = max(cells, key=lambda site: _mean(site.decodable))
    text += f"; most in {site_layer(best)}, steps {best.first} to {best.last}: {number(best.used)}"
    if best.decodable is not None:
        text += f", where probes have a score of {number(best.decodable)}"
    text += "."
    if read.decodable is None or read is best:
        return text
    return text + (
        f" Probes read {summary.intervention.prop} best in {site_layer(read)}, steps {read.first} "
        f"to {read.last} ({number(read.decodable)}); the edit there has the effect "
        f"{number(read.used)}."
    )


def _mean(value: Interval | None) -> float:
    return float("-inf") if value is None or value.mean is None else value.mean
