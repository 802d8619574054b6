"""Display of the process's activity: a live line on a terminal, one line per minute in a file.

The lines go to standard error, so that standard output has the results alone.  Lines that cannot
be written, since the terminal was closed or the program that read them has ended, are left out, and
the units of work continue.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_EVERY_S = 60.0
"""Interval in seconds between two lines if standard error is no terminal."""


class Activity:
    """Activity of the process, such as a stage of a flow, as the live line shows it.

    Args:
        text: what is done, such as ``generate``.
        total: number of units, None if there are none to count.
    """

    def __init__(self, text: str, total: int | None = None) -> None:
        self.text, self.total = text, total
        self.done, self.note = 0, ""
        self.started = time.monotonic()
        self.row: Any = None

    def line(self) -> str:
        """Return the state of the activity as one line of text."""
        counts = "" if self.total is None else f" {self.done} of {self.total}"
        note = self.note or f"for {duration(time.monotonic() - self.started)}"
        return f"{self.text}:{counts}{',' if counts else ''} {note}"


class Display:
    """Display of the innermost of nested activities; the outer ones are shown when it ends.

    Attributes:
        activities: what is done at present, outermost first.
    """

    def __init__(self) -> None:
        self.activities: list[Activity] = []
        self._lock = threading.RLock()
        self._progress: Progress | None = None
        self._over = threading.Event()

    def push(self, activity: Activity) -> None:
        """Show an activity instead of the one that was shown before."""
        with self._lock:
            self.activities.append(activity)
            if len(self.activities) == 1:
                self._start()
            if self._progress is not None:
                for outer in self.activities[:-1]:
                    self._progress.update(outer.row, visible=False)
                activity.row = self._progress.add_task(
                    activity.text, total=activity.total, counts="", note=""
                )
                self.refresh(activity)

    def pop(self, activity: Activity) -> None:
        """Remove an activity that has ended."""
        with self._lock:
            self.activities.remove(activity)
            if self._progress is not None:
                self._progress.refresh()
                self._progress.remove_task(activity.row)
                if self.activities:
                    self._progress.update(self.activities[-1].row, visible=True)
            if not self.activities:
                self._stop()

    def refresh(self, activity: Activity) -> None:
        """Show the present values of an activity."""
        with self._lock:
            if self._progress is not None and activity in self.activities:
                total = activity.total
                self._progress.update(
                    activity.row,
                    description=activity.text,
                    total=total,
                    completed=activity.done,
                    counts="" if total is None else f"{activity.done}/{total}",
                    note=activity.note,
                )

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Remove the live line as long as a block of code runs."""
        with self._lock:
            progress = self._progress
            if progress is not None:
                progress.stop()
            try:
                yield
            finally:
                if progress is not None:
                    progress.start()

    def _start(self) -> None:
        """Start the live line on a terminal, else the thread that writes lines."""
        self._over = threading.Event()
        if _is_terminal():
            self._progress = _live_line()
            self._progress.start()
        else:
            threading.Thread(
                target=self.write_lines, args=(self._over,), name="display", daemon=True
            ).start()

    def _stop(self) -> None:
        """Remove the live line, or end the thread that writes lines."""
        self._over.set()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def write_lines(self, over: threading.Event) -> None:
        """Write a line about the innermost activity again and again, until an event is set."""
        while not over.wait(LINE_EVERY_S):
            with self._lock:
                text = self.activities[-1].line() if self.activities else ""
            if text:
                _write(text)


_display = Display()


@contextmanager
def activity(text: str, total: int | None = None) -> Iterator[Activity]:
    """Show an activity on the display while a block of code runs.

    Args:
        text: what is done, such as ``starting the Prefect server``.
        total: number of units of it, None if there are none to count.

    Yields:
        the activity, whose ``done`` and ``note`` are shown after a call of `refresh`.
    """
    current = Activity(text, total)
    _display.push(current)
    try:
        yield current
    finally:
        _display.pop(current)


def refresh(current: Activity, **values: Any) -> None:
    """Change values of an activity, and show them on the display.

    Args:
        current: the activity.
        values: new values of its attributes ``text``, ``total``, ``done`` and ``note``.
    """
    for name, value in values.items():
        setattr(current, name, value)
    _display.refresh(current)


def hidden() -> AbstractContextManager[None]:
    """Return a context manager that removes the live line, so that its block can print."""
    return _display.hidden()


def print_line(text: str) -> None:
    """Print a line on standard error that stays, above the live line if there is one."""
    with hidden():
        _write(text)


def _write(text: str) -> None:
    """Write a line to standard error, unless that is closed or nothing reads it any more."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def show_cursor() -> None:
    """Show the terminal's cursor again, which the live line hides, before the process is ended."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h")


def duration(seconds: float) -> str:
    """Format a time, as ``2 h 5 min``, ``3 min 20 s`` or ``40 s``."""
    hours, minutes = divmod(round(seconds) // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{round(seconds)} s"


def _is_terminal() -> bool:
    """Return whether standard error is a terminal on which a line can be redrawn."""
    return not sys.stderr.closed and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _LastingStream:
    """Stream that discards what the stream below it cannot write, such as a closed terminal."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, and return the number of its characters."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what the stream has kept so far."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def _live_line() -> Progress:
    """Build the live line: spinner, text, bar, counts, elapsed time and note."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=cast("IO[str]", _LastingStream(sys.stderr))),
        transient=True,
        refresh_per_second=4,
        # Rich would print redirected output above the live line, on standard error.  If standard
        # output is a file, results must go to that file instead.
        redirect_stdout=sys.stdout.isatty(),
    )
