"""The report of a run: one folder, no network."""

from __future__ import annotations

import json
from importlib import resources

import jinja2

from ldmprobe_core.report import figures
from ldmprobe_core.report.text import NAMES, best_rows, headline, number, step
from ldmprobe_core.stages import label_set, samples_of
from ldmprobe_core.store import Run
from ldmprobe_core.summary import Summary, summarise

GRID_SAMPLES = 4


def build_report(run: Run, seconds: dict[str, float]) -> Summary:
    """Write ``summary.json`` and ``report/`` into the run.

    Args:
        seconds: wall time of each stage, for the record.
    """
    findings = summarise(run, seconds)
    summary = findings.summary
    labels, samples = label_set(run), samples_of(run)
    pictures: dict[str, list[tuple[str, str]]] = {"properties": [], "samples": []}
    for prop, curves in findings.curves.items():
        best = summary.properties[prop].best
        for kind, figure, alternative in (
            (
                "heatmap",
                figures.heatmap(prop, curves, run.layers, summary),
                f"Heatmap of {prop} scores, step by layer; best at step {best.step}, {best.layer}.",
            ),
            (
                "curves",
                figures.curves_figure(prop, findings),
                f"{prop} scores over steps for probes, image labelers and controls.",
            ),
        ):
            name = f"{prop}-{kind}.png"
            run.write_bytes(f"report/{name}", figures.png(figure))
            pictures["properties"].append((name, alternative))
    steps = _columns(summary.steps)
    for index in findings.test[:GRID_SAMPLES]:
        name = f"sample-{index:05d}.png"
        figure = figures.sample_grid(run, labels, summary, int(index), steps)
        run.write_bytes(f"report/{name}", figures.png(figure))
        pictures["samples"].append((name, samples[index].prompt))

    record = summary.model_dump(mode="json", by_alias=True)
    template = resources.files(__package__) / "page.html"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(number=number, step=step, names=NAMES)
    page = environment.from_string(template.read_text("utf-8")).render(
        summary=record,
        study=run.study(),
        headline=headline(record),
        rows=best_rows(record),
        pictures=pictures,
        study_json=run.read_text("study.json"),
    )
    run.write_text("report/index.html", page)
    # Last, and whole: a run that has a summary is a finished run.
    run.write_text("summary.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    return summary


def _columns(steps: int) -> list[int]:
    """Steps to show: the early ones, where the news is, and the last."""
    wanted = [1, 2, 3, 5, 8, 10, 12, 15]
    return sorted({s for s in wanted if s < steps} | {steps})
