"""Execution of a flow for a command, with a line on where it can be watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flows.checks.environment import check_environment
from flows.commands.results import console
from tasks.display import activity

if TYPE_CHECKING:
    from flows.server import LocalServer


@contextmanager
def server_in_advance() -> Iterator[LocalServer | None]:
    """Start the Prefect server that `carry_out` will need, if any, without waiting for it.

    Raises:
        UserError: temporary files cannot be written, or Prefect's settings are unusable.
    """
    check_environment()
    with activity("loading Prefect"):
        from flows import server
    with server.server_in_advance() as in_advance:
        yield in_advance


def carry_out(
    flow: str, run_url: str, in_advance: LocalServer | None, **parameters: Any
) -> dict[str, Any]:
    """Carry out a flow with a Prefect server, and return its result.

    Args:
        flow: name of the flow: ``study``, ``classify`` or ``intervene``.
        run_url: folder or URL of the run, to be printed.
        in_advance: result of `server_in_advance`.
        parameters: parameters of the flow.
    """
    with activity("loading Prefect"):
        from flows.run_flow import run_flow
        from flows.server import prefect_server, ui_url

        function = getattr(import_module(f"flows.{flow}"), f"{flow}_flow")
    with prefect_server(in_advance=in_advance) as api:
        console.print(f"Prefect UI: {ui_url(api)}\nRun: {run_url}\n", highlight=False)
        return run_flow(function, **parameters)


def with_live_line(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command such that the live line is shown from its start, while libraries are imported.

    Where nothing more exact is shown, the line has the command's name.
    """

    @wraps(command)
    def shown(*arguments: Any, **options: Any) -> None:
        with activity(f"ldmprobe {command.__name__}"):
            command(*arguments, **options)

    return shown
