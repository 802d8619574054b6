"""The command ``ldmprobe prune``, which deletes old runs of a study, or their activations."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.results import console
from tasks.display import activity

StudyArgument = Annotated[str, typer.Argument(help="name of the study, as in the runs' names")]
StoreOption = Annotated[str, typer.Option(help="folder or s3://bucket/prefix that holds runs")]
KeepOption = Annotated[
    int | None, typer.Option(help="finished runs to keep, the newest; all by default")
]
ActivationsOption = Annotated[
    int | None, typer.Option(help="runs whose activations to keep, the newest; all by default")
]
YesOption = Annotated[bool, typer.Option("--yes", help="delete; without it, only show")]


def prune(
    study: StudyArgument,
    store: StoreOption = "runs",
    keep: KeepOption = None,
    keep_activations: ActivationsOption = None,
    yes: YesOption = False,
) -> None:
    """Show which old runs of a study, or which of their activations, to delete; --yes deletes."""
    from ldmprobe_core.storage.lifecycle.retention import (
        DELETE,
        PARTLY,
        STRIP,
        apply_retention,
        plan_retention,
    )

    with activity("reading the state of the runs"):
        plan = plan_retention(store, study, keep, keep_activations)
    if yes:
        with activity("deleting"):
            plan = apply_retention(plan, study)
    for item in plan:
        name, note = item.url.rpartition("/")[2], ""
        if item.action in (DELETE, STRIP):
            note = f" ({item.size / 1e9:.3f} GB)"
        elif item.reason:
            note = f" ({item.reason})"
        console.print(f"{name}: {item.action}{note}", highlight=False, soft_wrap=True)
    freed = sum(item.size for item in plan if item.action in (DELETE, STRIP, PARTLY))
    if not plan:
        sentence = f"{store} holds no run of a study {study!r}"
    elif yes:
        sentence = f"{freed / 1e9:.3f} GB were deleted"
    elif freed:
        sentence = f"nothing was deleted; the same command with --yes frees {freed / 1e9:.3f} GB"
    else:
        sentence = "there is nothing to delete"
    console.print(sentence, highlight=False, soft_wrap=True)
    if any(item.action == PARTLY for item in plan):
        raise typer.Exit(1)
