"""Results of commands on a terminal do not share a line with the live line."""

import os
import re
import subprocess
import sys

import pytest
from terminals import everything_on

PRINTS = {
    "console": 'console.print("a result")',
    "write": 'write("a result")',
}

COMMAND = """
from flows.commands.results import console, write
from tasks.display import activity
with activity("ldmprobe show"):
    {}
"""


@pytest.mark.parametrize("how", PRINTS)
def test_result_has_a_line_of_its_own(how):
    reader, terminal = os.openpty()
    subprocess.run(
        [sys.executable, "-c", COMMAND.format(PRINTS[how])],
        stdout=terminal, stderr=terminal, check=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )  # fmt: skip
    os.close(terminal)
    shown = everything_on(reader)
    assert "ldmprobe show" in shown
    # What stands before the result on its line, since the line was last erased.
    line = re.split(r"\r|\n", shown.partition("a result")[0])[-1].rpartition("\x1b[2K")[2]
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) == ""


@pytest.mark.parametrize("columns", ["0", "²"])
def test_messages_are_printed_whatever_columns_are_set(columns):
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "show", "/no/such/run"],
        capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": columns},
    )  # fmt: skip
    assert done.returncode == 1
    assert "/no/such/run holds no summary.json" in done.stderr
