"""Printing of a command's results on standard output, above the live line if there is one."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console

from tasks.display import hidden


class ResultConsole(Console):
    """Console that hides the live line while it prints, so that both do not share a line."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects as `Console.print` does."""
        with hidden():
            super().print(*objects, **options)


console = ResultConsole(markup=False, emoji=False)
"""Console of all commands."""


def write(text: str, newline: bool = True) -> None:
    """Write text to standard output as it is."""
    with hidden():
        typer.echo(text, nl=newline)
