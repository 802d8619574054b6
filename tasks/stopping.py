"""Requests to stop or to pause a flow, which the stages and units of the flow check for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ldmprobe_core.errors import RunError

_LOOK_EVERY_S = 0.3


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


class PausedError(RunError):
    """Error that ends a stage early because the flow run was paused in Prefect.

    `flows.pause_watch.with_pauses` waits until the flow run is resumed, and repeats the stage.
    """


@dataclass(frozen=True)
class Stop:
    """Request to stop the running flow, with a message for the user and options of the stop.

    Attributes:
        message: message for the user.
        exit_code: exit code of the command line.
        cancels: whether to mark the flow run as cancelled in Prefect.
        is_cancellation: whether the flow run can end only as cancelled, since it was cancelled in
            Prefect.
        suspends: whether the flow run was suspended in Prefect, which starts it again, in another
            process, when it is resumed.
        waits: whether the flow waits for units in progress before it ends.
        limit_s: seconds after the request at which the process ends in any case.
        since: time of the request on the clock of `time.monotonic`.
    """

    message: str
    exit_code: int
    cancels: bool = True
    is_cancellation: bool = False
    suspends: bool = False
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
        say(stop.message)  # printed first, before the request takes effect
        _requests.append(stop)
    return True


def say(sentence: str) -> None:
    """Print a message on standard error in a way that is safe inside a signal handler.

    A message that cannot be written is left out, since it must not keep a flow from stopping: the
    Ctrl-C that stops this process also ends the `tee` that reads its messages.
    """
    with suppress(OSError):
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


_resumed = threading.Event()
_resumed.set()


def pause(message: str) -> None:
    """Ask the flow of this process to start no more units until `resume`, and print the message."""
    if _resumed.is_set():
        say(message)
        _resumed.clear()


def resume(message: str) -> None:
    """Let a paused flow go on, and print the message; without effect if it is not paused."""
    if not _resumed.is_set():
        say(message)
        _resumed.set()


def is_paused() -> bool:
    """Return whether the flow that runs in this process is paused."""
    return not _resumed.is_set()


def wait_until_resumed() -> None:
    """Wait until the flow of this process is no longer paused.

    Raises:
        StoppedError: a stop was requested meanwhile.
    """
    while not _resumed.wait(_LOOK_EVERY_S):
        require_not_stopped()


@contextmanager
def stoppable() -> Iterator[None]:
    """Run a flow without the requests of earlier flows, and discard its own at the end."""
    _requests.clear()
    _resumed.set()
    try:
        yield
    finally:
        _requests.clear()
        _resumed.set()
