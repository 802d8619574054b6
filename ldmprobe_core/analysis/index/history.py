"""History of a scheduled study: the headline scores of all its runs, also of deleted ones.

The store keeps a file for each finished scheduled run, ``history/<study>/<run>.json``.  It stays
when retention deletes the run.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from ldmprobe_core.analysis.compare import different_values, settings_that_affect_results
from ldmprobe_core.analysis.controls.records import Record
from ldmprobe_core.analysis.controls.wording import metric_title
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report.text import number
from ldmprobe_core.errors import LdmprobeError
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lifecycle.schedule_record import read_schedule_record
from ldmprobe_core.storage.run import Run

HISTORY_FOLDER = "history"
"""Folder of a store that holds the histories of its scheduled studies."""

_SEEDS = {"prompts": {"seed"}, "images": {"seed"}}


class HeadlineScore(Record):
    """Test score of a property in one run, at the layer and step that are best on validation.

    Attributes:
        metric: metric of the score.
        score: mean over the run's test samples with its interval.
        step: sampler step of the cell, from 1.
        layer: layer of the cell.
    """

    metric: str
    score: Interval
    step: int
    layer: str


class HistoryEntry(Record):
    """One scheduled run of a study.

    Attributes:
        run: name of the run's folder.
        scheduled_for: date for which the run was scheduled.
        finished: time at which its summary was written, in UTC.
        settings: study without its name, its workers, paths of input files and seeds.
        weights: fingerprints of the model and of the labelers, by key of the study.
        versions: versions of Python packages with which the run was created.
        code: digest of this package's source files, on the machine of the flow; None if unknown.
        test_samples: number of test samples.
        scores: headline scores by property.
    """

    run: str
    scheduled_for: date
    finished: datetime
    settings: dict[str, Any]
    weights: dict[str, str | None]
    versions: dict[str, str]
    code: str | None
    test_samples: int
    scores: dict[str, HeadlineScore]


def update_history(store: str, study: str) -> list[HistoryEntry]:
    """Write the entries of a study's finished scheduled runs, and return its whole history.

    Args:
        store: folder or ``s3://bucket/prefix`` that contains runs.
        study: name of the study.

    Returns:
        all entries, oldest date first, including those of deleted runs.
    """
    location = Location(store)
    known = {entry.run: entry for entry in read_history(location, study)}
    for name in location.folders(""):
        if name.rpartition("-")[0] != study:
            continue
        entry = entry_of(Run(f"{location.url}/{name}"))
        if entry is not None and entry != known.get(name):
            location.write_text(_path(study, name), entry.model_dump_json(indent=1))
            known[name] = entry
    return sorted(known.values(), key=_order)


def read_history(location: Location, study: str) -> list[HistoryEntry]:
    """Read the history of a scheduled study, oldest date first; a damaged entry is left out."""
    entries = []
    for file in location.files(f"{HISTORY_FOLDER}/{study}"):
        name = file.removesuffix(".json")
        try:
            remedy = "remove the file, which the next scheduled run writes again"
            entries.append(location.read_record(_path(study, name), HistoryEntry, remedy))
        except LdmprobeError:
            continue
    return sorted(entries, key=_order)


def entry_of(run: Run) -> HistoryEntry | None:
    """Build the history entry of a run; None if it is unfinished, unreadable or not scheduled."""
    record = read_schedule_record(run.location)
    if record is None or not run.location.has("summary.json"):
        return None
    try:
        summary, study, attributes = load_summary(run), run.study, run.attributes
    except LdmprobeError:
        return None
    scores = {
        prop: HeadlineScore(
            metric=result.best.metric,
            score=result.best.score,
            step=result.best.step,
            layer=result.best.layer,
        )
        for prop, result in summary.properties.items()
    } | {
        prop: HeadlineScore(
            metric="spearman",
            score=result.best.spearman,
            step=result.best.step,
            layer=result.best.layer,
        )
        for prop, result in summary.numbers.items()
    }
    labelers = attributes.get("labeler_fingerprints", {})
    settings = settings_that_affect_results(study)
    for section, keys in _SEEDS.items():
        settings[section] = {
            key: value for key, value in (settings.get(section) or {}).items() if key not in keys
        }
    return HistoryEntry(
        run=run.url.rpartition("/")[2],
        scheduled_for=record.scheduled_for,
        finished=run.location.modified("summary.json"),
        settings=settings,
        weights={
            "model": attributes.get("model_fingerprint"),
            **{f"labels.{prop}": value for prop, value in labelers.items()},
        },
        versions=attributes.get("versions", {}),
        code=record.code,
        test_samples=summary.samples["test"],
        scores=scores,
    )


def differences(entry: HistoryEntry, reference: HistoryEntry) -> list[str]:
    """Name what distinguishes the study or the code of a run from those of a reference run.

    Seeds are left out, because they differ between all scheduled runs.

    Returns:
        settings with both values, weights, versions of packages, and ``code``; empty if the two
        runs are repetitions of one study with the same code.
    """
    pairs = different_values(reference.settings, entry.settings)
    pairs |= different_values(reference.versions, entry.versions)
    named = [
        f"{key} {_short(theirs)} (not {_short(ours)})" for key, (ours, theirs) in pairs.items()
    ]
    named += [f"weights of {key}" for key in different_values(reference.weights, entry.weights)]
    if entry.code != reference.code:
        named.append("code")
    return named


def history_rows(entries: list[HistoryEntry]) -> list[dict[str, str]]:
    """Build a table of a history, newest date first.

    Each row has the score and interval of every property.  The last column names what
    distinguishes the run from the newest one, so that only rows in which it is empty are
    repetitions of the newest run.

    Args:
        entries: history of one study, oldest date first.
    """
    if not entries:
        return []
    reference = entries[-1]
    properties = list(dict.fromkeys(prop for e in reversed(entries) for prop in e.scores))
    rows = []
    for entry in reversed(entries):
        cells = {prop: _cell(entry.scores.get(prop)) for prop in properties}
        rows.append(
            {
                "date": entry.scheduled_for.isoformat(),
                "run": entry.run,
                "test samples": str(entry.test_samples),
                **cells,
                "differs from the newest run in": ", ".join(differences(entry, reference)),
            }
        )
    return rows


def studies_with_history(location: Location) -> list[str]:
    """Return the names of the scheduled studies of which a store keeps a history."""
    return location.folders(HISTORY_FOLDER)


def _cell(score: HeadlineScore | None) -> str:
    return "–" if score is None else f"{number(score.score)} ({metric_title(score.metric)})"


def _path(study: str, run: str) -> str:
    return f"{HISTORY_FOLDER}/{study}/{run}.json"


def _order(entry: HistoryEntry) -> tuple[date, datetime]:
    return entry.scheduled_for, entry.finished


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
