"""Command-line argument that names a run, and look-up of the finished run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ldmprobe_core.storage.run import Run

RunArgument = Annotated[str, typer.Argument(help="folder or URL of a run")]


def finished_run(address: str) -> Run:
    """Return a run after checking that it is finished, which means that it has a summary.

    Args:
        address: folder or URL of a run, or of its ``summary.json``.

    Raises:
        UserError: there is no run at this address, or it has no summary.
    """
    from ldmprobe_core.storage.run import Run

    run = Run(address.removesuffix("/summary.json"))
    run.location.require_reachable()
    run.location.read_bytes("summary.json")
    return run
