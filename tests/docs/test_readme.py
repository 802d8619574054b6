"""README.md and docs/results.md: the example as it stands, numbers as committed runs give them."""

import json
from pathlib import Path

import pytest

from ldmprobe_core.analysis.records import Summary

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_readme_example_runs(code_blocks, tmp_path, monkeypatch):
    pytest.importorskip("ldmprobe")
    monkeypatch.chdir(tmp_path)
    (code,) = code_blocks("README.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names = {}
    exec(code, names)
    assert names["means"].dims == ("condition", "kind", "metric", "step", "layer")
    assert names["probe"].weight.ndim == 1
    assert isinstance(names["effect"].mean, float)
    assert list(tmp_path.glob("runs/*/report/index.html"))


def score(interval):
    """A mean with its interval, as README writes it."""
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def number(record, name):
    """A step or a lead with its interval, as README writes it."""
    value = record[name] if record["determined"] else "not determined"
    return f"{value} [{record['low']}, {record['high']}]"


def above(control):
    return lambda result: score(result["controls"][control]["difference"])


def event(curve, name):
    return lambda result: number(result["emergence"][curve]["relative"][name], "step")


ROWS = {
    "best probe, last step": lambda result: score(result["last"]["score"]),
    "best cell": lambda result: score(result["best"]["score"]),
    "position alone": lambda result: score(result["controls"]["position"]["own_best"]["score"]),
    "best cell less position alone": above("position"),
    "less probes of shuffled labels (20 permutations, p = 1/21)": above("shuffled_labels"),
    "less probes of permuted weights (65 test images)": above("permuted_weights"),
    "less probes of the noisy latents, 5 x 5 around each token": above("latents"),
    "less probes of the predicted clean image's pixels (64 test images)": above("clean_pixels"),
    "less the prompt alone": above("prompt"),
    "partial score (position regressed out): best cell": lambda result: (
        score(result["best"]["partial"]) if result["best"]["partial"] else ""
    ),
    "at step 1: AUROC, partial, partial": lambda result: score(result["steps"][0]["value"]),
    "at step 1, less the noisy latents": lambda result: score(
        result["steps"][0]["less_inputs"]["latents"]
    ),
    "onset: probes": event("probe", "onset"),
    "onset: labeler on decoded latents (64 test images)": event("decoded", "onset"),
    "settled: probes": event("probe", "settled"),
    "lead over the labeler on decoded latents": lambda result: number(
        result["leads"]["decoded"]["onset"], "steps"
    ),
    "lead over the labeler on the predicted clean image": lambda result: number(
        result["leads"]["clean"]["onset"], "steps"
    ),
}


def table_rows(text):
    """Cells of the rows below the head of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


README_ROWS = [
    "best cell",
    "position alone",
    "best cell less position alone",
    "less probes of shuffled labels (20 permutations, p = 1/21)",
    "less probes of permuted weights (65 test images)",
    "less probes of the noisy latents, 5 x 5 around each token",
    "less the prompt alone",
    "onset: probes",
    "onset: labeler on decoded latents (64 test images)",
    "lead over the labeler on decoded latents",
    "lead over the labeler on the predicted clean image",
]


@pytest.fixture(scope="module")
def results():
    """Foreground, depth and shading of docs/tabletop-summary.json, of the run of `make demo`."""
    summary = json.loads((ROOT / "docs" / "tabletop-summary.json").read_text("utf-8"))
    assert [summary["samples"]["total"], summary["steps"], summary["layers"]] == [240, 15, 7]
    return [summary["properties"][name] for name in ("foreground", "depth", "shading")]


def text_of(page, heading):
    """Text of a page after a heading."""
    return (ROOT / page).read_text("utf-8").split(heading, 1)[1]


@pytest.mark.parametrize(
    ("page", "heading", "rows"),
    [
        ("README.md", "## A result", README_ROWS),
        ("docs/results.md", "## What can be read", list(ROWS)),
    ],
)
def test_table_has_the_numbers_of_the_committed_summary(page, heading, rows, results):
    table = table_rows(text_of(page, heading).split("| mean angle", 1)[0].split("\n## ", 1)[0])
    assert table == [[label, *(ROWS[label](result) for result in results)] for label in rows]
    controls = [result["controls"] for result in results]
    assert {control["permuted_weights"]["samples"]["test"] for control in controls} == {65}
    assert {control["clean_pixels"]["samples"]["test"] for control in controls} == {64}


def test_sentences_have_the_numbers_of_the_committed_summary(results):
    text = " ".join(text_of("docs/results.md", "## What can be read").split())
    alone = [
        ", ".join(
            f"{result['controls'][name]['own_best']['score']['mean']:.2f}" for result in results
        )
        for name in ("prompt", "position")
    ]
    assert f"(prompt {alone[0]}; position {alone[1]}; differences not tested" in text
    clean = [result["leads"]["clean"]["onset"] for result in results[1:]]
    depth, shading = (f"[{lead['low']}, {lead['high']}]" for lead in clean)
    assert f"for depth {depth} and shading {shading} the labeler may be ahead" in text
    first = [result["steps"][0] for result in results[:2]]
    means = [f"{step['value']['mean']:.2f}" for step in first]
    noise = [
        f"{step['value']['mean'] - step['less_inputs']['latents']['mean']:.2f}" for step in first
    ]
    readme = " ".join(text_of("README.md", "## A result").split())
    assert (
        f"(AUROC {means[0]} and {noise[0]}; partial rank correlation {means[1]} and {noise[1]},"
        in readme
    )
    assert f"foreground has an AUROC of {means[0]}, the noise {noise[0]}" in text


def test_committed_summary_has_every_field_of_the_present_records():
    summary = json.loads((ROOT / "docs" / "tabletop-summary.json").read_text("utf-8"))
    assert json.loads(Summary.model_validate(summary).model_dump_json(by_alias=True)) == summary


def test_table_of_normals_has_the_numbers_of_the_committed_summary():
    """docs/normals-summary.json holds a run's `vectors`, and the controls of their components."""
    summary = json.loads((ROOT / "docs" / "normals-summary.json").read_text("utf-8"))
    normals = summary["vectors"]["normals"]
    inputs = normals["inputs"]
    text = text_of("docs/results.md", "| mean angle")
    degrees = {
        "best cell": normals["best"]["degrees"],
        "position alone": normals["position"],
        "probes of 5 x 5 noisy latents": inputs["latents"]["degrees"],
        "probes of the predicted clean image's pixels, fitted to 32 training images, not 108": (
            inputs["clean_pixels"]["degrees"]
        ),
        "best cell less position, image by image": normals["less_position"],
    }
    table = table_rows("| mean angle" + text.split("\n\n", 1)[0])
    assert table == [
        [name, f"{v['mean']:.1f} [{v['low']:.1f}, {v['high']:.1f}]"] for name, v in degrees.items()
    ]
    best, position = (
        f"{v['mean']:.1f} [{v['low']:.1f}, {v['high']:.1f}]"
        for v in (normals["best"]["degrees"], normals["position"])
    )
    readme = " ".join(text_of("README.md", "## A result").split())
    assert f"Probes are {best} degrees off the labels, position alone {position}" in readme
    controls = [c for part in summary["controls"].values() for c in part.values() if c]
    assert len(controls) == 18
    assert all(control["difference"]["low"] > 0 for control in controls)
