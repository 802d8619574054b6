"""Request to stop a flow early, which its stages and units look at."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ldmprobe_core.errors import RunError


class StoppedError(RunError):
    """A flow that ended early because a stop was requested.

    Attributes:
        exit_code: of the command line.
        is_printed: True: the user has read the message already.
    """

    is_printed = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Stop:
    """A request to stop.

    Attributes:
        message: sentence for the user.
        exit_code: of the command line.
        cancels: whether the flow run becomes Cancelled in Prefect; else it failed.
        is_cancellation: whether it was cancelled in Prefect.
        waits: whether units that run are waited for.
        limit_s: time after which the process ends in any case.
        since: clock value of the request, from `time.monotonic`.
    """

    message: str
    exit_code: int
    cancels: bool = True
    is_cancellation: bool = False
    waits: bool = True
    limit_s: float = 60.0
    since: float = field(default_factory=time.monotonic)

    @property
    def is_overdue(self) -> bool:
        """Whether `limit_s` has passed since the request."""
        return time.monotonic() - self.since > self.limit_s


_requests: list[Stop] = []
_lock = threading.RLock()  # a signal handler may interrupt its own thread within it


def request_stop(stop: Stop) -> bool:
    """Ask the flow of this process to stop, and print the message at once.

    Returns:
        False if a stop was requested before; the first one remains.
    """
    with _lock:
        if _requests:
            return False
        _requests.append(stop)
    say(stop.message)
    return True


def say(sentence: str) -> None:
    """Print a sentence on standard error, also from a signal handler that interrupts a print."""
    os.write(2, f"\n{sentence}\n".encode("utf-8", "replace"))


def requested_stop() -> Stop | None:
    """The request to stop this process's flow, if there is one."""
    return _requests[0] if _requests else None


def require_not_stopped() -> None:
    """End a stage or a unit that has not started yet if a stop was requested.

    Raises:
        StoppedError: a stop was requested.
    """
    if stop := requested_stop():
        raise StoppedError(stop.message, stop.exit_code)


@contextmanager
def stoppable() -> Iterator[None]:
    """Forget requests of earlier flows of this process, and on exit those of this one."""
    _requests.clear()
    try:
        yield
    finally:
        _requests.clear()
