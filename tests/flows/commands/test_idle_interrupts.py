"""Tests of Ctrl-C while no flow runs."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading
from flows.commands.errors import run_command
from flows.commands.idle_interrupts import answer_interrupts

def command():
    try:
        print("ready", flush=True)
        threading.Event().wait(300)
    finally:
        if sys.argv[1] == "slow":
            print("closing", flush=True)
            threading.Event().wait(300)

answer_interrupts()
raise SystemExit(run_command(command))
"""


@pytest.mark.parametrize("end", ["quick", "slow"])
def test_answer_interrupts_says_so_at_once_and_ends_at_the_second(end):
    command = [sys.executable, "-c", SCRIPT, end]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline().startswith("Stopping now; what is complete is kept")
        if end == "slow":
            assert process.stdout.readline() == "closing\n"
            process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        assert "Traceback" not in process.stderr.read()
