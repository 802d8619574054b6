"""The commands ``ldmprobe export`` and ``ldmprobe index``, which write results for elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.checks.finished_run import RunArgument, finished_run
from flows.commands.results import write

Target = Annotated[
    str,
    typer.Option("--to", help="local file to write: .csv, .parquet, or .tex for the main table"),
]
StoreArgument = Annotated[str, typer.Argument(help="folder or s3://bucket/prefix that holds runs")]


def export(run: RunArgument, to: Target) -> None:
    """Write mean scores over the test samples of every cell (CSV, Parquet), or the main table."""
    from ldmprobe_core.analysis.exports import export_run_scores
    from ldmprobe_core.storage.lifecycle.reading import reading

    finished = finished_run(run)
    with reading("ldmprobe export", finished.url):
        export_run_scores(finished, to)
    write(to)


def index(store: StoreArgument = "runs") -> None:
    """Write a page of all runs of a store, index.html, with their results side by side."""
    from ldmprobe_core.analysis.index.build import write_index

    write(write_index(store))
