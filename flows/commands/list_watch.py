"""The commands ``ldmprobe list`` and ``ldmprobe watch``.

They show runs and their progress from the stored files alone, without a study file or a server.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.checks.finished_run import RunArgument
from flows.commands.results import console, write
from ldmprobe_core.errors import LdmprobeError
from tasks.display import Activity, activity, duration, refresh

if TYPE_CHECKING:
    from ldmprobe_core.storage.run import Run


LOOK_EVERY_S = 2.0
"""Interval in seconds between two looks at the progress of a run."""

StoreArgument = Annotated[str, typer.Argument(help="folder or s3://bucket/prefix that holds runs")]


def list_(store: StoreArgument = "runs") -> None:
    """List the runs of a store: name, model, state, age, and best scores or progress."""
    from ldmprobe_core.storage.filesystem import Location

    location = Location(store)
    location.require_reachable()
    names = [name for name in location.folders("") if location.has(f"{name}/study.json")]
    if not names:
        console.print(f"{location.url} holds no runs", highlight=False, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "model", "state", "age", "best scores, or progress"):
        table.add_column(heading, overflow="fold")
    for name in names:
        table.add_row(*_row(f"{location.url}/{name}", name))
    console.print(table, highlight=False)


def watch(run: RunArgument) -> None:
    """Show the progress of a run that another process carries out, until that ends."""
    from ldmprobe_core.analysis.records import load_summary
    from ldmprobe_core.storage.run import Run

    watched = Run(run)
    watched.location.require_reachable()
    watched.study  # noqa: B018  (raises if there is no run)
    # Without a terminal, the next line is printed only after a minute, so print the state now.
    console.print(f"{watched.url}: {progress_text(watched)}", highlight=False, soft_wrap=True)
    with activity("reading the progress of the run") as shown:
        first, since = unit_counts(watched), time.monotonic()
        while not watched.location.has("summary.json") and is_held(watched, patient=True):
            _show(shown, unit_counts(watched), first, time.monotonic() - since)
            time.sleep(LOOK_EVERY_S)
    if watched.location.has("summary.json"):
        load_summary(watched)  # Raises if the file is damaged, so that no results can be printed.
        console.print(f"{watched.url} is finished: ldmprobe show prints its results",
                      highlight=False, soft_wrap=True)  # fmt: skip
        return
    console.print(
        f"{watched.url}: no process works on it; {progress_text(watched)}. The same command that "
        "started it goes on from there.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def unit_counts(run: Run) -> dict[str, tuple[int, int]]:
    """Count the complete units and all units of a run, by kind.

    Returns:
        number of complete units and of all units, by kind, in the order in which they are needed.
    """
    from ldmprobe_core.storage.units import ACCUMULATE, GENERATE, LABEL, PROBE
    from ldmprobe_core.study.batching import accumulation_units

    counts = {}
    for kind in (GENERATE, LABEL, ACCUMULATE, PROBE):
        if not kind.applies_to(run.study):
            continue
        done = run.progress.counts(kind)
        total = int(done.size)
        if kind.sequential:
            first = run.n_stored if run.study.capture.keep == "statistics" else 0
            units = accumulation_units(run.study, first, run.open("samples").sizes["sample"])
            total = sum(len(part) for part in units)
        counts[kind.verb] = int(done.sum()), total
    return counts


def progress_text(run: Run) -> str:
    """Return the number of complete units of each kind in words."""
    return ", ".join(f"{verb} {done}/{total}" for verb, (done, total) in unit_counts(run).items())


def _show(
    shown: Activity,
    counts: dict[str, tuple[int, int]],
    first: dict[str, tuple[int, int]],
    seconds: float,
) -> None:
    """Show the first stage that is not complete, with the time left at the pace seen so far."""
    for verb, (done, total) in counts.items():
        if done < total:
            new = done - first[verb][0]
            left = f"{duration(seconds / new * (total - done))} left" if new else ""
            refresh(shown, text=verb, done=done, total=total, note=left)
            return
    refresh(shown, text="summary and report", total=None, note="")


def is_held(run: Run, patient: bool = False) -> bool:
    """Return whether a process works on a run.

    Args:
        run: the run.
        patient: whether to watch a lease that is old, or of the future, by the clocks, for half a
            minute; its holder may be on a machine with another clock.
    """
    from ldmprobe_core.storage.lease import holder_of

    return holder_of(run.url, lambda _: patient) is not None


def _row(url: str, name: str) -> list[str]:
    """Return the table row of a run; a run that cannot be read gets a row that says so."""
    from ldmprobe_core.storage.run import Run

    try:
        run = Run(url)
        study = json.loads(run.location.read_text("study.json"))
        model = str(study["model"]["source"]).rstrip("/").rpartition("/")[2]
        if run.location.has("summary.json"):
            summary = json.loads(run.location.read_text("summary.json"))
            if _is_of_another_run(summary, run):
                return [name, model, "unreadable", "", "summary.json is of another run"]
            return [name, model, "finished", _age(run, "summary.json"), _scores(summary)]
        state = "at work" if is_held(run) else "stopped"
        return [name, model, state, _age(run, "study.json"), progress_text(run)]
    except LdmprobeError as error:
        return [name, "", "unreadable", "", str(error).partition(". Fix")[0]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [name, "", "unreadable", "", "study.json or summary.json is damaged"]


def _is_of_another_run(summary: dict[str, Any], run: Run) -> bool:
    """Return whether a summary has another study's hash than the run; False if either has none."""
    if "study_hash" not in summary or not run.location.has("zarr.json"):
        return False
    created = json.loads(run.location.read_text("zarr.json"))["attributes"]
    return bool(created.get("study_hash") != summary["study_hash"])


def _scores(summary: dict[str, Any]) -> str:
    """Return the best score of each property; runs of older layouts are read too."""
    parts = []
    for prop, result in summary.get("properties", {}).items():
        score = result.get("best", {}).get("score")
        mean = score.get("mean") if isinstance(score, dict) else score
        parts.append(f"{prop} {mean:.2f}" if isinstance(mean, float) else f"{prop} –")
    return ", ".join(parts)


def _age(run: Run, name: str) -> str:
    """Return how long ago a file of a run was written, such as ``5 h``.

    It is ``in 5 h`` for a file from a machine whose clock is ahead of this one's.
    """
    seconds = (datetime.now(UTC) - run.location.modified(name)).total_seconds()
    hours = int(abs(seconds) // 3600)
    age = f"{hours // 24} d" if hours >= 48 else f"{hours} h" if hours else "< 1 h"
    return f"in {age}" if hours and seconds < 0 else age


def print_version(wanted: bool) -> None:
    """Print the version, and end the command, if the option is given."""
    if wanted:
        from importlib.metadata import version

        write(f"ldmprobe {version('ldmprobe')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=print_version, is_eager=True, help="print the version"),
]
