"""The command ``ldmprobe export``."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.checks.finished_run import RunArgument, finished_run
from flows.commands.results import write

Target = Annotated[
    str, typer.Option("--to", help="file to write: .csv, .parquet, or .tex for the main table")
]


def export(run: RunArgument, to: Target) -> None:
    """Write mean scores over the test samples of every cell (CSV, Parquet), or the main table."""
    from ldmprobe_core.analysis.exports import export_run_scores
    from ldmprobe_core.storage.lifecycle.reading import reading

    finished = finished_run(run)
    with reading("ldmprobe export", finished.url):
        export_run_scores(finished, to)
    write(to)
