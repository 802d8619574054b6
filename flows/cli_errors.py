"""Exit codes of the command line, and the sentence that it prints for every failure."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ldmprobe_core.errors import RunError, UserError

DONE, MISTAKE, USAGE, FAULT, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: success, a mistake that the user can correct, wrong usage of the command, a fault of
the machine or of this program, and an interruption (Ctrl-C)."""

EXIT_CODES = (
    "Exit codes: 0 done; 1 a mistake in a study, a file or the environment; 2 wrong usage; "
    "3 a fault of the machine or of ldmprobe; 130 stopped by Ctrl-C or in Prefect (143 by SIGTERM)."
)
"""The same as one line of `ldmprobe --help`."""

_LONGEST_MESSAGE = 300


def run_command(command: Callable[[], object], debug: bool = False) -> int:
    """Call a command, and print one sentence on standard error if it fails.

    An exception that is neither a `UserError` nor a `RunError` is unexpected: its traceback is
    written to a log file, whose path is in the sentence.

    Args:
        debug: whether to print the traceback of every failure as well.

    Returns:
        the exit code.
    """
    try:
        command()
    except SystemExit as stop:  # typer reports wrong usage itself, and ends with it on success too
        return _code_of(stop)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (UserError, RunError) as error:
        code = getattr(error, "exit_code", MISTAKE if isinstance(error, UserError) else FAULT)
        _report("" if getattr(error, "is_printed", False) else str(error), debug)
        return code
    except Exception as error:
        _report(_unexpected(error), debug)
        return FAULT
    return DONE


def debug_requested(arguments: list[str]) -> bool:
    """Whether ``--debug`` is among the arguments, or LDMPROBE_DEBUG is set to anything but 0."""
    return "--debug" in arguments or os.environ.get("LDMPROBE_DEBUG", "0") not in ("", "0")


def _report(message: str, debug: bool) -> None:
    if message:
        console = Console(stderr=True)
        console.print(
            f"ldmprobe: {message}", style="red", highlight=False, markup=False, soft_wrap=True
        )
    if debug:
        traceback.print_exc()


def _unexpected(error: Exception) -> str:
    """The sentence for an unexpected exception; its traceback goes to a log file."""
    lines = str(error).strip().splitlines() or [""]
    detail = f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    if len(detail) > _LONGEST_MESSAGE:
        detail = detail[: _LONGEST_MESSAGE - 3] + "..."
    log = write_log("".join(traceback.format_exception(error)))
    kept = f"its traceback is in {log}" if log else "--debug prints its traceback"
    return f"unexpected {detail}; {kept}. Fix: repeat the command; if it fails again, report this"


def write_log(text: str) -> Path | None:
    """Write a new log file, readable by its owner alone; returns its path, None without a place.

    The folder is ``ldmprobe`` in XDG_STATE_HOME (``~/.local/state`` by default), or else the
    temporary folder.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    command = " ".join(sys.argv)
    for folder in (_state_folder(), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "a", encoding="utf-8", errors="replace") as file:
                file.write(f"{command}\n{text}")
        except OSError:
            continue
        return folder / name
    return None


def _state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "ldmprobe"


def _code_of(stop: SystemExit) -> int:
    if stop.code is None:
        return DONE
    return stop.code if isinstance(stop.code, int) else FAULT
