"""Exit codes of the command line, and the message that it prints if a command fails."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ldmprobe_core.errors import RunError, UserError, without_logins

DONE, MISTAKE, USAGE, FAULT, INTERRUPTED, UNREAD = 0, 1, 2, 3, 130, 141
"""Exit codes of the command.

``DONE`` means success, ``MISTAKE`` an error that the user can correct, ``USAGE`` wrong arguments,
``FAULT`` a failure of the machine or of this program, ``INTERRUPTED`` a stop by Ctrl-C, and
``UNREAD`` a stop because the program that read the output has ended, as in ``| head``.
"""

EXIT_CODES = (
    "Exit codes: 0 done; 1 a mistake in a study, a file or the environment; 2 wrong usage; "
    "3 a fault of the machine or of ldmprobe; 130 stopped by Ctrl-C or in Prefect (143 by "
    "SIGTERM); 141 the output was closed before its end."
)
"""Description of the exit codes, which ``ldmprobe --help`` prints as its last line."""

_LONGEST_MESSAGE = 300

_ENDING = ("", "click", "flows", "prefect", "rich", "tasks", "typer")
"""Packages that end a command by `SystemExit`: at its end, on wrong usage, or on a signal."""


def run_command(command: Callable[[], object], debug: bool = False) -> int:
    """Call a command, print a message on standard error if it fails, and return the exit code.

    An exception is unexpected unless it is a `UserError`, a `RunError`, or a refusal of a store.
    Its traceback is written to a log file, and the message names that file.

    Args:
        command: function that runs the command.
        debug: whether to print the traceback of every failure too.

    Returns:
        the exit code of the process.
    """
    try:
        _require_current_folder()
        command()
    except SystemExit as stop:
        # typer ends every command, including successful ones, with SystemExit, and has already
        # printed a message if the usage was wrong.  Therefore return the exit code only.
        if module := _foreign_exit(stop):
            _report(
                f"{module}: its code ended the program before the command was done "
                f"(SystemExit: {' '.join(str(stop).split())}). Fix: raise an exception there that "
                "says what is wrong",
                debug,
            )
            return FAULT
        return _code_of(stop)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (UserError, RunError) as error:
        code = getattr(error, "exit_code", MISTAKE if isinstance(error, UserError) else FAULT)
        _report("" if getattr(error, "is_printed", False) else str(error), debug)
        return code
    except Exception as error:
        _report(_output_problem(error) or _storage_problem(error) or _unexpected(error), debug)
        return FAULT
    return DONE


def prepare_streams() -> None:
    """Reopen closed standard streams on the null device, and replace characters they cannot show.

    If a stream is closed, as by ``>&-``, the next file that the process opens gets its number.
    Output of a library to the stream would then be written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(
                os.devnull, os.O_RDWR
            )  # opened under the lowest free number: that of the closed stream
            os.set_inheritable(number, True)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper):
            # Show "?" for a character that the terminal cannot display, instead of failing.
            stream.reconfigure(errors="replace")


def _output_problem(error: Exception) -> str:
    """Return the message about an output that cannot be written; empty for another error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = str(frames[-1][0].f_globals.get("__name__")) if frames else ""
    # An OSError from click, rich or typer concerns the standard streams, because these packages
    # write no files.
    if not isinstance(error, OSError) or module.partition(".")[0] not in ("click", "rich", "typer"):
        return ""
    _discard_output(1)
    return (
        f"standard output: it cannot be written to ({error.strerror}). Fix: free some space, or "
        "send the output to another place"
    )


def _storage_problem(error: Exception) -> str:
    """Return the message about a store that refuses a request; empty for another error."""
    if not isinstance(error, OSError):
        return ""
    if str(error).startswith("object store: "):
        return f"{error}. Fix: check the store and the credentials, then repeat the command"
    if isinstance(error, PermissionError) and error.filename is not None:
        return (
            f"{os.fsdecode(error.filename)}: this user may not read or change it "
            f"({error.strerror}). Fix: correct its permissions"
        )
    return ""


def _require_current_folder() -> None:
    """Check that the current folder still exists."""
    try:
        os.getcwd()
    except OSError:
        raise UserError("the current folder was removed. Fix: change to another folder") from None


def debug_requested(arguments: list[str]) -> bool:
    """Return whether the user asked for tracebacks, by ``--debug`` or by LDMPROBE_DEBUG=1."""
    return "--debug" in arguments or os.environ.get("LDMPROBE_DEBUG", "0") not in ("", "0")


def _report(message: str, debug: bool) -> None:
    """Print a message on standard error, with the traceback if ``debug``."""
    try:
        if message:
            console = Console(stderr=True, emoji=False)
            console.print(
                f"ldmprobe: {message}", style="red", highlight=False, markup=False, soft_wrap=True
            )
        if debug:
            sys.stderr.write(without_logins(traceback.format_exc()))
        sys.stderr.flush()
    except (OSError, SystemExit):
        # Standard error cannot be written; rich raises either error.  The exit code is then all
        # that tells of the failure, so it must stay.
        _discard_output(2)


def _discard_output(number: int) -> None:
    """Send what is left of an output, standard output (1) or standard error (2), to nowhere.

    Python flushes both when it exits.  That would fail again, print a traceback for standard
    output, and in some releases of Python 3.11 change the exit code to 120.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _unexpected(error: Exception) -> str:
    """Write the traceback of an unexpected exception to a log file, and return the message."""
    lines = without_logins(str(error)).strip().splitlines() or [""]
    detail = f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    if len(detail) > _LONGEST_MESSAGE:
        detail = detail[: _LONGEST_MESSAGE - 3] + "..."
    log = write_log(without_logins("".join(traceback.format_exception(error))))
    kept = f"its traceback is in {log}" if log else "--debug prints its traceback"
    return f"unexpected {detail}; {kept}. Fix: repeat the command; if it fails again, report this"


def write_log(text: str) -> Path | None:
    """Write text to a new log file that only its owner can read, and return the file's path.

    The file is created in the folder ``ldmprobe`` under XDG_STATE_HOME (by default
    ``~/.local/state``), or in the temporary folder if that is not writable.  The function returns
    None if neither folder is writable.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    command = " ".join(sys.argv)
    for choose_folder in (_state_folder, lambda: Path(tempfile.gettempdir())):
        try:
            folder = choose_folder()
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "a", encoding="utf-8", errors="replace") as file:
                file.write(f"{command}\n{text}")
        except OSError:
            continue
        return folder / name
    return None


def _state_folder() -> Path:
    """Return the folder for log files in the user's home."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "ldmprobe"


def _foreign_exit(stop: SystemExit) -> str:
    """Return the module that raised a `SystemExit`, if it is not one that ends commands.

    A study can name code of the user, such as an own metric.  If it calls ``sys.exit()``, the
    command is not done, although the exit code may be that of success.
    """
    modules = [
        str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(stop.__traceback__)
    ]
    others = [name for name in modules if name != "_sitebuiltins"]  # where exit() is defined
    last = others[-1] if others else ""
    return "" if last.partition(".")[0] in _ENDING else last


def _code_of(stop: SystemExit) -> int:
    """Return the exit code that a `SystemExit` stands for."""
    if isinstance(stop.__context__, BrokenPipeError):
        return UNREAD
    if stop.code is None:
        return DONE
    return stop.code if isinstance(stop.code, int) else FAULT
