"""The command ``ldmprobe export``."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.checks.finished_run import RunArgument, finished_run
from flows.commands.results import write

Target = Annotated[str, typer.Option("--to", help="file to write: .csv, .parquet or .tex")]


def export(run: RunArgument, to: Target) -> None:
    """Write a finished run's scores as CSV or Parquet (every cell), or LaTeX (the main table)."""
    from ldmprobe_core.analysis.exports import export_run_scores

    export_run_scores(finished_run(run), to)
    write(to)
