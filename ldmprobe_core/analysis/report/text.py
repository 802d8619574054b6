"""A summary in words and rows, for terminals, artifacts and the page."""

from __future__ import annotations

from typing import Any

NAMES = {"spearman": "rank correlation", "dice": "Dice"}
_CONTROLS = {
    "position": "position alone",
    "shuffled_labels": "shuffled labels",
    "permuted_weights": "permuted weights",
    "latents": "the latents alone",
    "mlp": "a two-layer probe",
}
_RIVALS = ("position", "shuffled_labels", "permuted_weights", "latents")
"""Controls that a score should clear; a two-layer probe may well read more."""


def short_layer(layer: str) -> str:
    """A layer's name without the parts that all attention layers share."""
    return layer.replace(".transformer_blocks.0", "")


def number(interval: dict[str, Any] | None) -> str:
    """An interval as ``0.83 [0.80, 0.86]``; a dash where it is undefined or absent.

    Where the mean is of one prompt only there is no interval.
    """
    if interval is None or interval["mean"] is None:
        return "–"
    if interval["low"] is None:
        return f"{interval['mean']:.2f}"
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def step(value: dict[str, Any]) -> str:
    """A step as ``3 [2, 4]``; a dash where it is undefined."""
    if value["step"] is None:
        return "–"
    return f"{value['step']} [{value['low']}, {value['high']}]"


def lead(value: dict[str, Any]) -> str:
    """A lead as ``7 [6, 8]``; a dash where it is undefined."""
    if value["steps"] is None:
        return "–"
    return f"{value['steps']} [{value['low']}, {value['high']}]"


def best_rows(summary: dict[str, Any]) -> list[dict[str, str]]:
    """One row a property: best cell, the last step's, controls, emergence."""
    rows = []
    for name, found in summary["properties"].items():
        best, controls, emergence = found["best"], found["controls"], found["emergence"]
        rows.append(
            {
                "property": name,
                "metric": NAMES[best["metric"]],
                "best": number(best),
                "at": f"step {best['step']}, {short_layer(best['layer'])}, {best['kind']}",
                "last step": number(found["last"]),
                "position": number(controls["position"]),
                "shuffled": number(controls["shuffled_labels"]),
                "permuted": number(controls["permuted_weights"]),
                "latents": number(controls.get("latents")),
                **({"mlp": number(controls["mlp"])} if controls.get("mlp") else {}),
                "above position": "yes" if _above(best, controls["position"]) else "not clearly",
                "onset": step(emergence["probe"]["onset"]),
                "image onset": step(emergence["decoded"]["onset"]),
                "settled": step(emergence["probe"]["settled"]),
                "image settled": step(emergence["decoded"]["settled"]),
                "lead": lead(emergence["lead"]["decoded"]["onset"]),
                "lead over clean": lead(emergence["lead"]["clean"]["onset"]),
            }
        )
    return rows


def headline(summary: dict[str, Any]) -> list[str]:
    """One sentence a property."""
    lines = []
    for name, found in summary["properties"].items():
        best, last, emergence = found["best"], found["last"], found["emergence"]
        line = (
            f"{name.capitalize()}: at the last step the best probe scores {number(last)} "
            f"({NAMES[best['metric']]}); the best cell, {number(best)}, {_against(best, found)}."
        )
        probe, image = emergence["probe"], emergence["decoded"]
        if probe["onset"]["step"] is None:
            line += " When it emerges is undefined: the probes do not clear the position baseline."
        else:
            line += f" Probes have half of it from step {step(probe['onset'])}"
            if image["onset"]["step"] is None:
                line += "; when a labeler on the step's own image sees it is undefined."
            else:
                line += f", the labeler on the step's own image from step {step(image['onset'])}"
                line += _leading(emergence["lead"])
        lines.append(line)
    if summary.get("class"):
        lines.append(classes_line(summary["class"]))
    return lines


_EFFECTS = {
    "edited": "edited",
    "random": "random change of the same norm",
    "shuffled": "through shuffled-label probes",
}


def effect_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """One row a condition of an intervention, the unedited image first."""
    rows = [
        {
            "image": "unedited",
            f"{NAMES[found['metric']]} with target": number(found["unedited"]),
            "less unedited": "",
            "improved": "",
            "change elsewhere": "",
            "class kept": "",
        }
    ]
    for condition, effect in found["effects"].items():
        kept = effect["kept"]
        rows.append(
            {
                "image": _EFFECTS[condition],
                f"{NAMES[found['metric']]} with target": number(effect["mean"]),
                "less unedited": number(effect["less_unedited"]),
                "improved": f"{effect['improved'] * 100:.0f}%",
                "change elsewhere": number(effect["outside"]),
                "class kept": "–" if kept is None else f"{kept * 100:.0f}%",
            }
        )
    return rows


def _leading(leads: dict[str, Any]) -> str:
    """By how many steps probes lead, the stronger rival named as plainly."""
    image, clean = leads["decoded"]["onset"], leads["clean"]["onset"]
    said = f": a lead of {lead(image)} steps"
    if clean["steps"] is None:
        return f"{said}; over the labeler on the predicted clean image it is undefined."
    return f"{said}, and of {lead(clean)} over the labeler on the predicted clean image."


def classes_line(found: dict[str, Any]) -> str:
    """When the class labeler names the object, in a sentence."""
    image, clean = found["recognition_step"]["trajectory"], found["recognition_step"]["clean"]
    what = "prompt's class" if found["by_prompt"] else "finished image's class"
    share, confident = found["recognized"] * 100, found["confident"] * 100
    return (
        f"Class: the {what} leads at the last step in {share:.1f}% of images, there on average "
        f"from step {number(image)} on in the decoded latents and from step {number(clean)} in the "
        f"predicted clean image; {confident:.1f}% of finished images have a top probability above "
        "90%."
    )


def _against(best: dict[str, Any], found: dict[str, Any]) -> str:
    """How the best cell stands to its controls, intervals apart or not."""
    controls = {n: c for n, c in found["controls"].items() if c is not None and n in _RIVALS}
    cleared = [name for name, c in controls.items() if _above(best, c)]
    missed = [name for name in controls if name not in cleared]

    def named(names: list[str]) -> str:
        return ", ".join(f"{_CONTROLS[name]} ({number(controls[name])})" for name in names)

    if not missed:
        return f"is above {named(cleared)}"
    above = f"is above {named(cleared)}, but " if cleared else "is "
    return f"{above}not clearly above {named(missed)}"


def _above(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one["low"] is None or other["high"] is None:
        return False
    return bool(one["low"] > other["high"])
