"""Watch over a flow of the command line: signals, cancellation in Prefect, loss of the server.

Each of them requests a stop (`tasks.stopping`).  A request has a time limit, after which the
process ends in any case: units are recorded as complete after their data is written, so that only
the units in progress are lost, which the next start repeats.
"""

from __future__ import annotations

import contextvars
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Protocol

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import StateType

from flows.checks.prefect_settings import without_password
from tasks.stopping import Stop, request_stop, requested_stop, say

LOOK_EVERY_S = 0.5
"""Interval between two looks at whether a stop was asked for."""

POLL_EVERY_S = 3.0
"""Interval between two questions to the server."""

SILENCE_LIMIT_S = 40.0
"""Time without an answer after which the server counts as lost; a restart takes less."""

UNIT_LIMIT_S = 60.0
LOST_LIMIT_S = 10.0
EXIT_LIMIT_S = 20.0

_RESUMES = "the same command goes on from there"
_OVERDUE = "The units in progress did not end within {:.0f} s; the next start repeats them."


class ServerProcess(Protocol):
    """Server that this process started, and its log."""

    @property
    def process(self) -> Any:
        """The process, a `subprocess.Popen`."""

    @property
    def log(self) -> Any:
        """Path of the file with its output."""


class FlowWatch:
    """Context that watches over a flow run by a thread, and handles SIGINT and SIGTERM.

    Args:
        url: of the Prefect API.
        server: the process behind it if this process started it, else None.

    Attributes:
        flow_runs: ids of the flow runs that began, in order.
    """

    def __init__(self, url: str, server: ServerProcess | None = None) -> None:
        self.flow_runs: list[Any] = []
        self._url, self._server = url, server
        self._answered_at = time.monotonic()
        self._over = threading.Event()
        self._handlers: dict[signal.Signals, Any] = {}
        watch = contextvars.copy_context()  # Prefect's settings belong to a context
        self._thread = threading.Thread(
            target=watch.run, args=(self._keep_looking,), name="flow-watch", daemon=True
        )

    def __enter__(self) -> FlowWatch:
        _watches.append(self)
        self._handle(signal.SIGINT)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for number, previous in self._handlers.items():
            signal.signal(number, previous)
        _watches.remove(self)
        flow_ran.set()

    def begin(self, flow_run_id: Any) -> None:
        """Start to watch a flow run.

        Prefect sets a handler of SIGTERM of its own before it, which this one replaces until the
        flow ends.
        """
        self.flow_runs.append(flow_run_id)
        self._handle(signal.SIGTERM)

    def lost_server(self, error: BaseException) -> Stop | None:
        """The request to stop if an error of the flow comes from a server that is lost."""
        if not isinstance(error, (httpx.HTTPError, PrefectException, RuntimeError, OSError)):
            return None
        if self._has_ended():
            self._request_lost()
        return requested_stop()

    def _handle(self, number: signal.Signals) -> None:
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(number, _on_signal)
            self._handlers.setdefault(number, previous)

    def _keep_looking(self) -> None:
        next_poll = time.monotonic() + POLL_EVERY_S
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            while not self._over.wait(LOOK_EVERY_S):
                stop = requested_stop()
                if stop is not None:
                    if stop.is_overdue:
                        if stop.waits:
                            say(_OVERDUE.format(stop.limit_s))
                        end_at_once(stop.exit_code)
                elif self._has_ended():
                    self._request_lost()
                elif self.flow_runs and time.monotonic() >= next_poll:
                    self._poll()
                    next_poll = time.monotonic() + POLL_EVERY_S

    def _poll(self) -> None:
        """Ask the server for the state of the flow run."""
        flow_run_id = self.flow_runs[-1]
        try:
            with get_client(sync_client=True, httpx_settings={"timeout": 10.0}) as client:
                state = client.read_flow_run(flow_run_id).state
        except ObjectNotFound:  # it was deleted: that is no reason to stop
            self._answered_at = time.monotonic()
            return
        except (httpx.HTTPError, PrefectException, RuntimeError, OSError):
            if time.monotonic() - self._answered_at > SILENCE_LIMIT_S:
                self._request_lost()
            return
        self._answered_at = time.monotonic()
        if state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED):
            message = (
                f"flow run {flow_run_id} was cancelled in Prefect: stopping after this batch; "
                f"{_RESUMES}."
            )
            request_stop(
                Stop(message, 130, cancels=True, is_cancellation=True, limit_s=UNIT_LIMIT_S)
            )

    def _has_ended(self) -> bool:
        return self._server is not None and self._server.process.poll() is not None

    def _request_lost(self) -> None:
        log, fix = "", "start it again"
        if self._server is not None:
            log, fix = f" (its log is {self._server.log})", "look at its log"
        message = (
            f"ldmprobe: the Prefect server at {without_password(self._url)} has ended or does not "
            f"answer{log}. What is complete is kept. Fix: {fix}, and repeat the command, which "
            "goes on from there."
        )
        request_stop(Stop(message, 3, cancels=False, waits=False, limit_s=LOST_LIMIT_S))

    def end_server(self) -> None:
        """End the server that this process started, if it did."""
        if self._server is not None:
            self._server.process.terminate()


_watches: list[FlowWatch] = []
"""The watch in use; a list, since a flow may be watched within another one's process."""

flow_ran = threading.Event()


def begin_watch(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect's hook ``on_running``: start to watch the flow run.

    A function of a module, because the flow is sent to Dask workers with its hooks.
    """
    if _watches:
        _watches[-1].begin(flow_run.id)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    """Request a stop at the first signal; end the process at the second."""
    message = f"Stopping after this batch; {_RESUMES}."
    if not request_stop(Stop(message, 128 + number, limit_s=UNIT_LIMIT_S)):
        end_at_once(128 + number)


def end_at_once(exit_code: int) -> None:
    """End this process and the server that it started, without waiting for threads."""
    for watch in _watches:
        with suppress(Exception):
            watch.end_server()
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(exit_code)


def limit_exit(exit_code: int) -> None:
    """Bound the exit of a process that ran a flow: Prefect's threads may wait for a lost server.

    A process that goes on after all, such as one that calls the command line as a function, is left
    alone.
    """

    def end() -> None:
        if not threading.main_thread().is_alive():  # the interpreter waits for other threads
            end_at_once(exit_code)

    if flow_ran.is_set():
        sys.stdout.flush()
        timer = threading.Timer(EXIT_LIMIT_S, end)
        timer.daemon = True
        timer.start()
