"""Handler of Ctrl-C while no flow runs (during a flow, `flows.interruption` handles it)."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from flows.commands.errors import INTERRUPTED
from tasks.display import show_cursor
from tasks.stopping import say

_interrupts: list[int] = []


def answer_interrupts() -> None:
    """Have the first Ctrl-C stop the command with one line, and the second end it at once."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _on_interrupt)


def _on_interrupt(number: int, _frame: FrameType | None) -> None:
    """Stop the command at the first Ctrl-C, and end the process at the second."""
    _interrupts.append(number)
    if len(_interrupts) > 1:
        if "flows.interruption" in sys.modules:
            sys.modules["flows.interruption"].end_at_once(INTERRUPTED)
        show_cursor()
        os._exit(INTERRUPTED)
    say("Stopping now; what is complete is kept, and the same command goes on from there.")
    raise KeyboardInterrupt
