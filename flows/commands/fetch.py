"""The command ``ldmprobe fetch``."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from flows.commands.errors import MISTAKE
from flows.commands.results import console
from flows.commands.tables import print_missing

Study = Annotated[str, typer.Argument(help="a YAML file, or the name of a built-in study")]
To = Annotated[
    str | None,
    typer.Option("--to", help="local folder for the caches; by default the usual caches"),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="override a key, such as model.source=owner/name")
]


def fetch(study: Study, to: To = None, set_: Overrides = None) -> None:
    """Download a study's model, labelers and the paper's prompt files; `run` then works offline."""
    variables = {}
    if to is not None:
        from ldmprobe_core.study.readers.value_types import local_path

        folder = local_path(to, "--to").absolute()
        variables = {"HF_HUB_CACHE": str(folder / "hub"), "TORCH_HOME": str(folder / "torch")}
        # Set the variables before the imports below, at which the libraries read them.
        os.environ.update(variables)
    from ldmprobe_core.study.loading import load_study

    loaded = load_study(study, set_)
    # Imported after the study is read, so that its mistakes are reported without delay.
    from huggingface_hub.utils import logging

    from ldmprobe_core.pipeline.fetching.fetch import prepare_fetch
    from ldmprobe_core.pipeline.planning.plan import plan_study

    # The hub's client retries by itself, and its warnings would break up the progress bar.
    logging.set_verbosity_error()
    downloads = prepare_fetch(loaded)
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("fetch", total=sum(download.size for download in downloads))
        for download in downloads:
            progress.update(task, description=download.field)
            download.run(lambda count: progress.advance(task, count))
        progress.update(task, description="fetched")
    # A fetched model may record sampling defaults, so the study is loaded again with them.
    plan = plan_study(load_study(study, set_))
    print_missing(plan.missing)
    if plan.missing:
        raise typer.Exit(MISTAKE)
    setting = "".join(f"{name}={value} " for name, value in variables.items())
    console.print(
        f"Everything is here: {setting}ldmprobe run {study}", highlight=False, soft_wrap=True
    )
