"""Publication of results as Prefect artifacts.

Prefect's UI shows these artifacts, and keeps the earlier versions from previous scheduled runs.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from ldmprobe_core.analysis.classes.records import ClassesRecord
from ldmprobe_core.analysis.facts import limits_of, property_facts
from ldmprobe_core.analysis.index.history import HistoryEntry, history_rows
from ldmprobe_core.analysis.index.history_chart import history_charts
from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report.intervention_text import effect_rows, intervention_title
from ldmprobe_core.analysis.report.text import best_rows, classes_line, property_title
from ldmprobe_core.errors import counted
from ldmprobe_core.interventions.results import InterventionSummary
from ldmprobe_core.storage.lifecycle.retention import Retention
from ldmprobe_core.storage.run import Run

HISTORY_ROWS = 100
"""Largest number of rows of the table of a history."""


def artifact_key(text: str) -> str:
    """Return a text as an artifact's key, in which Prefect allows lowercase letters, digits and -.

    Names of properties and methods may have underscores.
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def publish(record: dict[str, Any], url: str) -> None:
    """Publish the results of a study as Prefect artifacts.

    There is a table with the best cell (step and layer) of each property, a short text, one
    heatmap per property, and a link to the report.  The key of each artifact contains the study's
    name, so that runs of the same study share a history.

    Args:
        record: summary of the run as JSON.
        url: folder or URL of the run.
    """
    summary = Summary.model_validate(record)
    name, run = summary.study, Run(url)
    create_table_artifact(
        table=best_rows(summary),
        key=artifact_key(f"best-cells-{name}"),
        description=f"Best cell of each property, run {summary.study_hash}",
    )
    report = f"{run.url}/report/index.html"
    lines = [f"# {name}", ""]
    for prop, result in summary.properties.items():
        facts = [f"- **{fact.value}** {fact.interval} {fact.text}"
                 for fact in property_facts(result, summary)]  # fmt: skip
        lines += [f"## {property_title(prop)}", "", *facts, "", limits_of(prop, result, summary)]
    if summary.classes is not None:
        lines += [classes_line(summary.classes), ""]
    lines += [f"Full report: `{report}`"]
    create_markdown_artifact(
        markdown="\n".join(lines),
        key=artifact_key(f"summary-{name}"),
        description="What the run found",
    )
    for prop in summary.properties:
        heatmap = base64.b64encode(run.location.read_bytes(f"report/{prop}-heatmap.svg")).decode()
        create_image_artifact(
            image_url=f"data:image/svg+xml;base64,{heatmap}",
            key=artifact_key(f"heatmap-{prop}-{name}"),
            description=f"{prop}: score of every cell, step by layer",
        )
    create_link_artifact(
        link=report if run.location.remote else Path(report).absolute().as_uri(),
        link_text="report",
        key=artifact_key(f"report-{name}"),
        description="The full report of the run",
    )


def publish_history(study: str, entries: list[HistoryEntry]) -> None:
    """Publish the headline scores of a study's scheduled runs: a table, and a chart per property.

    The table has the newest `HISTORY_ROWS` runs, because Prefect's UI shows tables as a whole.

    Args:
        study: name of the study.
        entries: its history, oldest date first; at least one.
    """
    rows = history_rows(entries)
    create_table_artifact(
        table=rows[:HISTORY_ROWS],
        key=artifact_key(f"history-{study}"),
        description=f"Best cell of each property in {len(rows[:HISTORY_ROWS])} of {len(rows)} "
        f"scheduled runs of {study}, with intervals over the test samples of each run",
    )
    for caption, chart in history_charts(entries).items():
        prop = caption.partition(":")[0]
        encoded = base64.b64encode(chart.encode()).decode()
        create_image_artifact(
            image_url=f"data:image/svg+xml;base64,{encoded}",
            key=artifact_key(f"history-{prop}-{study}"),
            description=f"{caption}; hollow: another study or other code than the newest run",
        )


def publish_retention(study: str, actions: list[Retention], problem: str = "") -> None:
    """Publish a table of what retention has done with each scheduled run of a study.

    Args:
        study: name of the study.
        actions: actions on the runs, newest run first.
        problem: why retention was not carried out; empty if it was.
    """
    table = [
        {
            "run": item.url.rpartition("/")[2],
            "action": item.action,
            "GB freed": round(item.size / 1e9, 3),
            "reason": item.reason,
        }
        for item in actions
    ]
    if problem:
        table = [{"run": "all", "action": "left alone", "GB freed": 0.0, "reason": problem}]
    create_table_artifact(
        table=table,
        key=artifact_key(f"retention-{study}"),
        description=f"Old runs of {study} in the store",
    )


def publish_intervention(found: dict[str, Any], url: str) -> None:
    """Publish a table with the effects of an intervention and of its control edits."""
    summary = InterventionSummary.model_validate(found)
    what = summary.intervention
    create_table_artifact(
        table=effect_rows(summary),
        key=artifact_key(f"intervention-{what.prop}-{what.method}"),
        description=f"{intervention_title(summary)}; run {url}",
    )


def publish_classes(found: dict[str, Any], name: str, url: str) -> None:
    """Publish a text about the class curves, and a table with one row per denoising step.

    The table gives the share of images whose class at that step equals that of the finished image.
    """
    lines = [
        f"# {name}",
        "",
        classes_line(ClassesRecord.model_validate(found)),
        "",
        f"Run: `{url}`",
    ]
    if found["photographs"]:
        real = found["photographs"]
        lines.insert(
            3, f"Of {counted(real['count'], 'real picture')} {real['confident']:.1%} are above 90%."
        )
    create_markdown_artifact(
        markdown="\n".join(lines),
        key=artifact_key(f"classes-{name}"),
        description="When the object is named",
    )
    table = [
        {"step": step, **{source: round(shares[step - 1], 3) for source, shares in
                          found["agreement"].items()}}
        for step, share in enumerate(found["agreement"]["trajectory"], 1)
        if share is not None
    ]  # fmt: skip
    create_table_artifact(
        table=table,
        key=artifact_key(f"class-agreement-{name}"),
        description="Share of step images already given the finished image's class",
    )
