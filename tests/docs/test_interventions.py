"""Figures of interventions in README and docs, against the committed results."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.intervention_results import COMMANDS, settings_of

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "docs/interventions-summary.json").read_text("utf-8"))["interventions"]


def score(interval):
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def effects(name):
    (site,) = RESULTS[name]["sites"]
    return site["effects"]


def used(site):
    """Effect of an edit: less the orthogonal null edit, or less the unedited image without one."""
    null = site["effects"].get("orthogonal")
    return null["edit_less_this"] if null else site["effects"]["edited"]["less_unedited"]


def clear(interval):
    return interval["low"] > 0 or interval["high"] < 0


def layer(site):
    short = site["layers"][0].replace(".transformer_blocks.0.attn1", "")
    return "denoiser's input" if short == "latents" else f"`{short}`"


def effect_at(name, short, first):
    """Effect of a causal map's cell, by layer and first step."""
    (site,) = (s for s in RESULTS[name]["sites"] if (layer(s), s["first"]) == (short, first))
    return used(site)


def map_rows(name):
    """Rows of a causal map, with the effects whose interval is clear of zero in bold."""
    rows = {}
    for site in RESULTS[name]["sites"]:
        text = score(used(site))
        rows.setdefault(layer(site), []).append(f"**{text}**" if clear(used(site)) else text)
    return [[row, *cells] for row, cells in rows.items()]


def kept(effect):
    return f"{effect['kept'] * 100:.0f}%"


def main_row(title, name):
    found = effects(name)
    columns = [
        RESULTS[name]["unedited"],
        found["edited"]["mean"],
        found["edited"]["less_unedited"],
        found["orthogonal"]["edit_less_this"],
        found["permuted"]["edit_less_this"],
        found["own_label"]["less_unedited"],
    ]
    cells = [score(value) for value in columns]
    cells[3] = f"**{cells[3]}**"
    return [title, *cells, kept(found["edited"])]


def erased_row(title, name):
    found = effects(name)
    return [
        title,
        score(found["edited"]["mean"]),
        score(found["orthogonal"]["edit_less_this"]),
        score(found["coherent"]["edit_less_this"]),
        kept(found["edited"]),
    ]


def readings(condition, name):
    return {
        (reading["layer"].replace(".transformer_blocks.0.attn1", ""), reading["kind"]): reading
        for reading in effects(name)[condition]["readings"]
    }


def reading_rows():
    """Probes' scores during an erasure of all layers: ridge of depth, both kinds of foreground."""
    columns = [("depth-erased", "ridge"), ("foreground-erased", "ridge"),
               ("foreground-erased", "logistic")]  # fmt: skip
    layers = dict.fromkeys(name for name, _ in readings("edited", "depth-erased"))
    rows = []
    for name in layers:
        found = [readings("edited", run)[name, kind] for run, kind in columns]
        cells = [f"{r['score']['mean']:.2f}, {score(r['less_unedited'])}" for r in found]
        rows.append([f"`{name}`", *cells])
    return rows


def single_rows():
    """Erasure of depth from one layer at a time: scores of the picture and of its probes."""
    rows = []
    for site in RESULTS["depth-erased-map"]["sites"]:
        edited = site["effects"]["edited"]
        own = [r for r in edited["readings"] if r["layer"] in site["layers"]]
        rows.append([layer(site), score(edited["mean"]), score(used(site)),
                     score(own[0]["score"]) if own else ""])  # fmt: skip
    return rows


TABLES = {
    "effects": lambda: [
        main_row("foreground, Dice", "foreground"),
        main_row("depth, partial", "depth"),
        main_row("shading, partial", "shading"),
    ],
    "erasures": lambda: [
        erased_row("foreground, Dice", "foreground-erased"),
        erased_row("depth, partial", "depth-erased"),
    ],
    "readings": reading_rows,
    "single layers": single_rows,
    "map of foreground": lambda: map_rows("foreground-map"),
    "map of depth": lambda: map_rows("depth-map"),
}


def tables(text):
    """All tables of a page, as lists of rows of cells without head."""
    found, current = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            current.append([cell.strip() for cell in line.strip("|").split("|")])
        elif current:
            found.append(current[2:])
            current = []
    return found


@pytest.mark.parametrize("name", TABLES)
def test_table_of_the_page_has_the_committed_results(name):
    page = (ROOT / "docs/interventions.md").read_text("utf-8")
    assert TABLES[name]() in tables(page)


def decodable(name, short):
    """Smallest and largest score of the probes of a causal map's layer over the windows."""
    means = [s["decodable"]["mean"] for s in RESULTS[name]["sites"] if layer(s) == short]
    return f"{min(means):.2f} to {max(means):.2f}"


def percent(value):
    return f"{value * 100:.0f}%"


def whole_percent(interval):
    mean, *ends = (f"{interval[key] * 100:.0f}" for key in ("mean", "low", "high"))
    return f"{mean}% [{', '.join(ends)}]"


def of_page():
    """Phrases of docs/interventions.md with the numbers of the committed results."""
    edited, nulls = effects("foreground")["edited"], effects("foreground")
    kept_by_nulls = [nulls[name]["kept"] for name in nulls if name != "edited"]
    moved = edited["measures"]["moved"]
    depth, shading = effects("depth"), effects("shading")
    best, first = "`up_blocks.2.attentions.0`", "`up_blocks.1.attentions.0`"
    yield (
        f"moves {moved['mean']:.1f} [{moved['low']:.1f}, {moved['high']:.1f}] of 12.0 pixels, more "
        f"than half of the way in {percent(edited['halfway'])} of pairs "
        f"({percent(nulls['orthogonal']['halfway'])} under the orthogonal null edit), and "
        f"{whole_percent(edited['measures']['ghost'])} of the place it left"
    )
    yield (
        f"kept in {kept(edited)} of the edits, and in {percent(min(kept_by_nulls))} to "
        f"{percent(max(kept_by_nulls))} of the null edits"
    )
    yield f"random directions by {score(depth['coherent']['less_unedited'])}"
    yield f"images' probes by {score(depth['permuted']['less_unedited'])}; the edit is above both"
    above = [score(depth[name]["edit_less_this"]) for name in ("coherent", "permuted")]
    yield f"above both (by {above[0]} and {above[1]})"
    yield f"unedited score ({score(depth['orthogonal']['less_unedited'])} above"
    yield f"raises the score too, by {score(shading['orthogonal']['less_unedited'])}"
    yield f"other images' probes by {score(shading['permuted']['less_unedited'])}; the edit"
    small = [effect_at("foreground-map", best, start)["mean"] for start in (7, 10)]
    yield f"at every step (Dice {decodable('foreground-map', best)}), has effects of"
    yield f"effects of {small[0]:.2f} and {small[1]:.2f} that are clear of zero"
    yield f"read depth best there too ({decodable('depth-map', first)}"


def of_donors():
    """Phrases of docs/interventions.md on activations of other images."""
    sites = RESULTS["foreground-donor-map"]["sites"]
    layers = [s for s in sites if layer(s) != "denoiser's input"]
    largest = max(layers, key=lambda s: used(s)["mean"])
    yield (
        f"most in {layer(largest)}, {score(used(largest))} in steps {largest['first']} to "
        f"{largest['last']}; {sum(clear(used(s)) for s in layers)} of {len(layers)} cells have an "
        "interval clear of zero"
    )
    *windows, last = (score(used(s)) for s in sites if layer(s) == "denoiser's input")
    yield f"{', '.join(windows)} and {last} in the five windows."


def of_readme():
    """Phrases of README.md with the numbers of the committed results."""
    found, unedited = effects("foreground"), RESULTS["foreground"]["unedited"]
    less, null = found["orthogonal"]["edit_less_this"], found["orthogonal"]["mean"]["mean"]
    mean = found["edited"]["mean"]["mean"]
    yield f"is {unedited['mean']:.2f} unedited, {mean:.2f} edited, and {null:.2f} after an edit"
    yield f"reads (difference {score(less)})"
    yield f"the class is kept in {kept(found['edited'])} of the images"
    erased = effects("foreground-erased")
    others = erased["orthogonal"]["mean"]["mean"]
    yield f"(Dice {score(erased['edited']['mean'])} with the masks of the unedited images; erasing"
    yield f"other directions, {others:.2f})"


def of_results():
    """Phrases of docs/results.md with the numbers of the committed results."""
    found = {name: effects(name) for name in ("foreground", "depth", "shading")}
    above = {name: score(found[name]["orthogonal"]["edit_less_this"]) for name in found}
    erased = {name: effects(f"{name}-erased") for name in ("foreground", "depth")}
    yield (
        f"from {RESULTS['foreground']['unedited']['mean']:.2f} to "
        f"{found['foreground']['edited']['mean']['mean']:.2f} (64 test samples, two targets each): "
        f"{above['foreground']} above"
    )
    yield f"above the same null {above['depth']} and {above['shading']};"
    others = {name: score(found[name]["permuted"]["edit_less_this"]) for name in found}
    yield f"probes of other images' labels {others['depth']} and {others['shading']})"
    means = [erased[name]["edited"]["mean"]["mean"] for name in erased]
    less = [score(erased[name]["orthogonal"]["edit_less_this"]) for name in erased]
    yield f"(Dice {means[0]:.2f} and partial rank correlation {means[1]:.2f} with"
    yield f"less the orthogonal null edits {less[0]} and {less[1]}, 32 test samples)"
    yield f"kept in {kept(found['foreground']['edited'])} of the images whose foreground is edited"
    first, best = "`up_blocks.1.attentions.0`", "`up_blocks.2.attentions.0`"
    largest = max(
        (used(s) for s in RESULTS["foreground-map"]["sites"] if layer(s) != "denoiser's input"),
        key=lambda effect: effect["mean"],
    )
    yield f"8 x 8 layers (up to {score(largest)})"
    cells = [effect_at("foreground-map", best, start) for start in (1, 4, 7, 10, 13)]
    yield (
        f"at most {max(c['mean'] for c in cells if clear(c)):.2f} where it is clear of zero "
        f"({cells[-1]['mean']:.2f} in steps 13 to 15, not clear)"
    )
    assert not clear(cells[-1])
    cells = [effect_at("depth-map", first, start) for start in (1, 4, 7, 10, 13)]
    yield f"{first} (up to {score(max(cells, key=lambda cell: cell['mean']))})"


@pytest.mark.parametrize(("page", "phrases"), [("docs/interventions.md", of_page),
                                               ("docs/interventions.md", of_donors),
                                               ("docs/results.md", of_results),
                                               ("README.md", of_readme)])  # fmt: skip
def test_sentences_have_the_committed_results(page, phrases):
    text = " ".join((ROOT / page).read_text("utf-8").split())
    assert [phrase for phrase in phrases() if " ".join(phrase.split()) not in text] == []


def test_causal_map_of_the_page_has_the_size_and_frames_of_its_script():
    path = ROOT / "docs/draw_causal_map.py"
    spec = importlib.util.spec_from_file_location("draw_causal_map", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with Image.open(script.FIGURE) as committed:
        assert committed.size == script.draw().size
    for name in script.MAPS.values():
        panels = script.causal_map(script.committed_map(name)).axes
        frames = sum(len(axes.patches) for axes in panels)
        assert frames == sum(clear(used(site)) for site in RESULTS[name]["sites"])


def test_committed_results_are_of_the_commands_of_the_page():
    assert set(RESULTS) == set(COMMANDS)
    page = " ".join((ROOT / "docs/interventions.md").read_text("utf-8").split())
    for name, result in RESULTS.items():
        assert result["command"] == f"ldmprobe intervene RUN {COMMANDS[name]}"
        assert json.loads(settings_of(COMMANDS[name]).model_dump_json()) == result["intervention"]
        assert COMMANDS[name] in page
