"""The command ``ldmprobe index``."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.results import write

StoreArgument = Annotated[str, typer.Argument(help="folder or s3://bucket/prefix that holds runs")]


def index(store: StoreArgument = "runs") -> None:
    """Write a page of all runs of a store, index.html, with their results side by side."""
    from ldmprobe_core.analysis.index.build import write_index

    write(write_index(store))
