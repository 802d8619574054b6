"""Tests of the live line on a terminal, and of the lines in a file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from terminals import everything_on

from tasks import display
from tasks.display import activity, duration, refresh

ON_TERMINAL = """
import sys
from tasks.display import activity, print_line, refresh
with activity("loading libraries"):
    with activity("generate", 60) as stage:
        stage.done, stage.note = 12, "3 min left, 5 min in all"
        refresh(stage)
        print_line("a line that stays")
print("result")
"""


def test_activity_is_a_line_of_a_terminal_that_is_removed_again():
    reader, terminal = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", ON_TERMINAL],
        stdout=subprocess.PIPE, stderr=terminal, check=True, text=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )  # fmt: skip
    os.close(terminal)
    shown = everything_on(reader)
    assert "loading libraries" in shown
    assert "12/60" in shown
    assert "3 min left, 5 min in all" in shown
    assert "a line that stays" in shown
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[2K" in shown.rpartition("12/60")[2]
    assert done.stdout == "result\n"


ON_CLOSED = """
import sys, threading
from tasks.display import Display, activity, print_line, refresh
from tasks.stopping import Stop, is_paused, pause, request_stop, requested_stop
with activity("generate", 60) as stage:
    print("shown", flush=True)
    sys.stdin.read()  # until standard error is closed on its other side
    refresh(stage, done=12)
    print_line("a line")
    lines = Display()
    lines.activities = [stage]
    once = threading.Event()
    once.wait = lambda seconds, ends=iter((False, True)): next(ends)
    lines.write_lines(once)
    pause("paused")
    request_stop(Stop("stopping", 130))
print("paused" if is_paused() else "goes on", requested_stop().exit_code)
"""


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_work_goes_on_without_standard_error(kind):
    """A terminal that was closed, or a `tee` that has ended, must not end a study, nor keep it
    from pausing and stopping."""
    reader, writer = os.openpty() if kind == "terminal" else os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", ON_CLOSED], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    ) as process:  # fmt: skip
        os.close(writer)
        assert process.stdout.readline() == "shown\n"
        os.close(reader)
        said, _ = process.communicate()
    assert said == "paused 130\n"
    assert process.returncode == 0


class OnceOver(threading.Event):
    """Event that is set after a number of waits, which then end at once."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def wait(self, timeout=None):
        self.waits -= 1
        return self.waits < 0


def test_activity_is_one_line_a_minute_in_a_file(capfd):
    shown = display.Display()
    outer, inner = display.Activity("generate", 60), display.Activity("reading")
    outer.done, outer.note = 12, "3 min left"
    shown.activities = [outer]
    shown.write_lines(OnceOver(2))
    shown.activities = [outer, inner]
    shown.write_lines(OnceOver(1))
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["generate: 12 of 60, 3 min left"] * 2 + ["reading: for 0 s"]


def test_activity_prints_nothing_in_a_file_before_a_minute_has_passed(capfd):
    with activity("generate", 3) as stage:
        stage.done = 1
        refresh(stage)
    assert capfd.readouterr() == ("", "")


def test_duration_rounds_to_two_units():
    assert [duration(s) for s in (0.4, 59.6, 61, 3_599, 7_500)] == [
        "0 s", "1 min 0 s", "1 min 1 s", "59 min 59 s", "2 h 5 min",
    ]  # fmt: skip
