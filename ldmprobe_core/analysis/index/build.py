"""Build the web page that lists all runs of a store.

The page is ``index.html`` in the store's own folder or prefix.  It loads nothing, and links to the
reports of the runs beside it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources

import jinja2

from ldmprobe_core.analysis.controls.wording import metric_title, not_exceeded
from ldmprobe_core.analysis.index.history import (
    HistoryEntry,
    history_rows,
    read_history,
    studies_with_history,
)
from ldmprobe_core.analysis.index.history_chart import history_charts
from ldmprobe_core.analysis.index.thumbnails import heatmap_svg
from ldmprobe_core.analysis.records import PropertyRecord, Summary, load_summary
from ldmprobe_core.analysis.report.text import number, step
from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.layers import short_layer


@dataclass
class RunEntry:
    """Results of one run for the web page that lists all runs of a store.

    Attributes:
        name: name of the run's folder.
        state: ``finished``, the progress of an unfinished run, or the reason why it is unreadable.
        written: time at which the summary, or else the study, was written, in UTC.
        model: the study's ``model.source``.
        summary: results of the run; None if it is not finished.
        means: by property, mean score of each (layer, step) over the test samples; empty without a
            report.
        has_report: whether the run has a report to link to.
        labelers: by property, the name of the labeler whose maps are its labels.
    """

    name: str
    state: str
    written: datetime | None = None
    model: str = ""
    summary: Summary | None = None
    means: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)
    has_report: bool = False
    labelers: dict[str, str] = field(default_factory=dict)


def write_index(store: str) -> str:
    """Write a store's index page: all runs, newest first, and histories of scheduled studies.

    Args:
        store: folder or ``s3://bucket/prefix`` that contains runs.

    Returns:
        path or URL of the page, ``index.html`` in the store.

    Raises:
        UserError: the store holds no run, cannot be reached, or cannot be written to.
    """
    location = Location(store)
    location.require_reachable()
    names = [name for name in location.folders("") if location.has(f"{name}/study.json")]
    histories = {study: read_history(location, study) for study in studies_with_history(location)}
    if not names and not any(histories.values()):
        raise UserError(
            f"store {location.url!r}: there is no run in it. Fix: check the address, or carry "
            "out a study there first"
        )
    entries = [read_entry(location, name) for name in names]
    oldest = datetime.min.replace(tzinfo=UTC)
    entries.sort(key=lambda entry: entry.written or oldest, reverse=True)
    page = index_page(location.url, entries, histories)
    # The names of folders need not be UTF-8.
    location.write_bytes("index.html", page.encode(errors="backslashreplace"))
    return f"{location.url}/index.html"


def read_entry(location: Location, name: str) -> RunEntry:
    """Read a run's entry for the index page; for an unreadable run, the entry gives the reason."""
    try:
        run = Run(f"{location.url}/{name}")
        model, labelers = _model_and_labelers(run)
        if not run.location.has("summary.json"):
            state = _progress(run)
            return RunEntry(name, state, run.location.modified("study.json"), model)
        summary = load_summary(run)
    except (UserError, RunError) as error:
        return RunEntry(name, f"unreadable: {error}")
    state, means = "finished", {}
    try:
        if run.location.has("report/scores.csv"):
            means = _cell_means(run, summary)
    except (UserError, RunError, KeyError, TypeError, ValueError, csv.Error):
        # The file is only drawn here, so the results of summary.json are shown without it.
        state = f"finished; report/scores.csv is damaged, and `ldmprobe report {run.url}` writes it"
    has_report = run.location.has("report/index.html")
    written = run.location.modified("summary.json")
    return RunEntry(name, state, written, model, summary, means, has_report, labelers)


def _model_and_labelers(run: Run) -> tuple[str, dict[str, str]]:
    """Return the name of a run's model, and by property that of its labeler.

    If this process cannot read the study, as where it has read another run that defines a property
    of the same name differently, both are taken from the text of study.json.

    Raises:
        UserError: the study cannot be read, and its text has no model or labels either.
        RunError: study.json is damaged.
    """
    try:
        labels = run.study.labels
        named = {prop: spec.name for prop in labels.maps if (spec := labels.labeler(prop))}
        return run.study.model.source, named
    except UserError as error:
        try:
            content = json.loads(run.location.read_text("study.json"))
            specs = content["labels"].items()
            named = {prop: spec["name"] for prop, spec in specs if isinstance(spec, dict)}
            return str(content["model"]["source"]), named
        except (AttributeError, KeyError, TypeError, ValueError):
            raise error from None


def index_page(
    url: str, entries: list[RunEntry], histories: Mapping[str, list[HistoryEntry]] | None = None
) -> str:
    """Return the HTML page of a store's runs.

    Args:
        url: address of the store.
        entries: runs in the store.
        histories: by name of a scheduled study, its history, oldest date first.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    properties = list(
        dict.fromkeys(
            name for entry in entries if entry.summary for name in entry.summary.properties
        )
    )
    return environment.from_string(text).render(
        url=url,
        entries=entries,
        properties=properties,
        heatmaps={prop: _heatmaps(prop, entries) for prop in properties},
        rows={prop: _side_by_side_rows(prop, entries) for prop in properties},
        histories=[
            (study, history_rows(history), history_charts(history))
            for study, history in (histories or {}).items()
            if history
        ],
        run_names=[entry.name for entry in entries if entry.has_report],
        now=datetime.now(UTC),
        number=number,
        metric_title=metric_title,
        shortfall=_shortfall,
    )


def _shortfall(result: PropertyRecord) -> str:
    """Say that a run's best probe is not above every control; empty if it is."""
    if result.below:
        return "; below a control"
    if result.not_clear:
        return "; not clearly above every control"
    if not result.not_compared:
        return ""
    if any(record.compared for record in result.controls.linear().values()):
        return "; not compared with every control (no interval)"
    return "; no interval"


def _heatmaps(prop: str, entries: list[RunEntry]) -> dict[str, str]:
    """Draw one property's heatmap for each run; runs with the same metric share a colour range."""
    with_means = [
        (entry, entry.summary.properties[prop].best.metric)
        for entry in entries
        if entry.summary is not None and entry.means.get(prop)
    ]
    ranges: dict[str, tuple[float, float]] = {}
    for entry, metric in with_means:
        values = list(entry.means[prop].values())
        low, high = ranges.get(metric, (values[0], values[0]))
        ranges[metric] = min(low, *values), max(high, *values)
    return {
        entry.name: heatmap_svg(entry.means[prop], ranges[metric], metric_title(metric))
        for entry, metric in with_means
    }


def _side_by_side_rows(prop: str, entries: list[RunEntry]) -> dict[str, list[str]]:
    """Return a property's table: one row for each result, with one cell for each run."""
    results = [entry.summary.properties.get(prop) if entry.summary else None for entry in entries]
    columns = [
        {"labels by": entry.labelers.get(prop, "–"), **_numbers(result)} if result else {}
        for entry, result in zip(entries, results, strict=True)
    ]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    return {key: [column.get(key, "–") for column in columns] for key in keys}


def _numbers(result: PropertyRecord) -> dict[str, str]:
    """Format a property's main results with their intervals, by row heading."""
    best = result.best
    return {
        "best score": f"{number(best.score)} ({metric_title(best.metric)})",
        "best cell": f"step {best.step}, {short_layer(best.layer)}, {best.kind}",
        "partial score": number(best.partial),
        "above position by": number(result.controls.position.difference),
        "not clearly above": not_exceeded(result),
        "onset (step)": step(result.emergence.probe.relative.onset),
        "score at the last step": number(result.last.score),
    }


def _progress(run: Run) -> str:
    """Describe how many units of work of an unfinished run are complete."""
    counts = []
    for kind, units in (("generated", "batches generated"), ("probed", "cells probed")):
        done = run.progress.completed(kind)
        counts.append(f"{int(done.sum())} of {done.size} {units}")
    return f"not finished: {', '.join(counts)}"


def _cell_means(run: Run, summary: Summary) -> dict[str, dict[tuple[str, int], float]]:
    """Read mean test scores of each property's best kind of probe, by layer and step."""
    means: dict[str, dict[tuple[str, int], float]] = {prop: {} for prop in summary.properties}
    layers = set(run.layers)
    for row in csv.DictReader(io.StringIO(run.location.read_text("report/scores.csv"))):
        best = summary.properties[row["property"]].best
        chosen = ("probe", best.kind, best.metric)
        if (row["condition"], row["kind"], row["metric"]) == chosen and row["layer"] in layers:
            means[row["property"]][row["layer"], int(row["step"])] = float(row["mean"])
    return {
        prop: dict(
            sorted(cells.items(), key=lambda cell: (run.layers.index(cell[0][0]), cell[0][1]))
        )
        for prop, cells in means.items()
    }
