"""Printing of a command's results on standard output, above the live line if there is one."""

from __future__ import annotations

import os
import re
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


def forget_unusable_sizes() -> None:
    """Remove COLUMNS and LINES from the environment, unless they are sizes of a terminal.

    With COLUMNS=0, which some containers and terminals set, rich prints no text at all, not even
    messages of errors.
    """
    for name in ("COLUMNS", "LINES"):
        if not re.fullmatch("[1-9][0-9]{1,4}", os.environ.get(name, "80")):
            del os.environ[name]


forget_unusable_sizes()
console = ResultConsole(markup=False, emoji=False)
"""Console of all commands."""


def write(text: str, newline: bool = True) -> None:
    """Write text to standard output as it is."""
    with hidden():
        typer.echo(text, nl=newline)
