"""Tests of the live line on a terminal, and of the lines in a file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

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
