"""Requests to stop a flow early, which the stages and units of the flow check for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ldmprobe_core.errors import RunError


class StoppedError(RunError):
    """Error that ends a flow early because a stop was requested.

    Attributes:
        exit_code: exit code of the command line.
        is_printed: always True, which tells the command line that the message was printed already.
    """

    is_printed = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Stop:
    """Request to stop the running flow, with a message for the user and options of the stop.

    Attributes:
        message: message for the user.
        exit_code: exit code of the command line.
        cancels: whether to mark the flow run as cancelled in Prefect.
        is_cancellation: whether the request comes from a cancellation in Prefect.
        waits: whether the flow waits for units in progress before it ends.
        limit_s: seconds after the request at which the process ends in any case.
        since: time of the request on the clock of `time.monotonic`.
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
        """True if more than `limit_s` seconds have passed since the request."""
        return time.monotonic() - self.since > self.limit_s


_requests: list[Stop] = []
# The lock is reentrant because a signal handler may interrupt the thread that holds it, and then
# request a stop in that same thread.
_lock = threading.RLock()


def request_stop(stop: Stop) -> bool:
    """Ask the flow of this process to stop, and print the message at once.

    Returns:
        True, or False if an earlier request exists, which then stays in force.
    """
    with _lock:
        if _requests:
            return False
        try:
            say(stop.message)  # printed first, before the request takes effect
        finally:
            _requests.append(stop)
    return True


def say(sentence: str) -> None:
    """Print a message on standard error in a way that is safe inside a signal handler."""
    os.write(2, f"\n{sentence}\n".encode("utf-8", "replace"))


def requested_stop() -> Stop | None:
    """Return the request to stop the flow that runs in this process, or None."""
    return _requests[0] if _requests else None


def require_not_stopped() -> None:
    """Raise `StoppedError` if a stop of this process's flow was requested.

    Units call this before they start, and stages call it when they end.

    Raises:
        StoppedError: a stop was requested.
    """
    if stop := requested_stop():
        raise StoppedError(stop.message, stop.exit_code)


@contextmanager
def stoppable() -> Iterator[None]:
    """Run a flow without the stop requests of earlier flows, and discard its own at the end."""
    _requests.clear()
    try:
        yield
    finally:
        _requests.clear()
