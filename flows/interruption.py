"""Monitor of a flow: stops it on a signal, a cancellation in Prefect or a lost Prefect server.

Each of these events requests a stop (`tasks.stopping`).  A request has a time limit, after which
the process ends even if units are still in progress.  This is safe, because a unit is recorded as
complete only after its data is written: the next start repeats the units that were in progress.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from contextvars import copy_context
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import StateType

from flows.checks.prefect_settings import without_password
from tasks.display import show_cursor
from tasks.stopping import Stop, request_stop, requested_stop, say
from tasks.watch_thread import WatchThread

LOOK_EVERY_S = 0.5
"""Interval in seconds between two checks whether a stop was requested or the server has ended."""

POLL_EVERY_S = 3.0
"""Interval in seconds between two requests for the state of the flow run."""

ANSWER_LIMIT_S = 10.0
"""Seconds that one request for the state of the flow run waits for its answer."""

SILENCE_LIMIT_S = 40.0
"""Seconds without a server after which it counts as lost; a restart takes less."""

BUSY_LIMIT_S = 300.0
"""Seconds without an answer after which a server that accepts requests counts as lost.

An HTTP error status is no answer, but a sign that the server is there.  On a busy machine, a server
with thousands of new task runs did not answer for 40 seconds.
"""

UNIT_LIMIT_S = 60.0
LOST_LIMIT_S = 10.0
EXIT_LIMIT_S = 20.0
RECORD_LIMIT_S = 10.0

ANNOUNCE_EXIT_S = 1.5
"""Seconds after which a process that does not exit yet says what it waits for."""

_RESUMES = "the same command goes on from there"
_STOPPING = (
    f"Stopping after the units in progress, within {UNIT_LIMIT_S:.0f} s; {_RESUMES}. "
    "A second Ctrl-C ends at once."
)
_OVERDUE = "The units in progress did not end within {:.0f} s; the next start repeats them."


class ServerProcess(Protocol):
    """Protocol of a Prefect server that this process started, such as `flows.server.LocalServer`.

    The watch needs the server's process and its log.
    """

    @property
    def process(self) -> Any:
        """The server's process, a `subprocess.Popen`."""

    @property
    def log(self) -> Any:
        """Path of the file that contains the server's output."""


class FlowWatch(WatchThread):
    """Context manager that stops the flow inside it on a signal, or on cancellation in Prefect.

    It requests the stop on SIGINT and SIGTERM.  A thread polls the Prefect server, and requests the
    stop if the flow run was cancelled or the server is lost.

    Args:
        url: URL of the Prefect API.
        server: the Prefect server if this process started it, else None.

    Attributes:
        flow_runs: ids of the flow runs that have begun, in order.
    """

    def __init__(self, url: str, server: ServerProcess | None = None) -> None:
        self.flow_runs: list[Any] = []
        self._url, self._server = url, server
        self._answered_at = self._reached_at = time.monotonic()
        self._handlers: dict[signal.Signals, Any] = {}
        self._client: SyncPrefectClient | None = None
        self._open_client = ExitStack()
        super().__init__("flow-watch")

    def __enter__(self) -> Self:
        _watches.append(self)
        self._handle(signal.SIGINT)
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for number, previous in self._handlers.items():
            signal.signal(number, previous)
        _watches.remove(self)
        flow_ran.set()

    def begin(self, flow_run_id: Any) -> None:
        """Start to watch a flow run for cancellation and for SIGTERM.

        Prefect sets its own handler of SIGTERM just before the flow run begins, so this method sets
        ours again.  The previous handler returns when the flow ends.
        """
        self.flow_runs.append(flow_run_id)
        self._handle(signal.SIGTERM)

    def lost_server(self, error: BaseException) -> Stop | None:
        """Request a stop if the flow failed because this process's Prefect server has ended.

        Args:
            error: exception that the flow raised.

        Returns:
            the request to stop, or None if the error has another cause.
        """
        if not isinstance(error, (httpx.HTTPError, PrefectException, RuntimeError, OSError)):
            return None
        if self._has_ended():
            self._request_lost()
        return requested_stop()

    def _handle(self, number: signal.Signals) -> None:
        """Install the handler of a signal, which only the main thread may do."""
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(number, _on_signal)
            self._handlers.setdefault(number, previous)

    def keep_looking(self) -> None:
        """Poll the server until the command is over.

        If the server has ended or has cancelled the flow run, the flow is asked to stop.  If it has
        not stopped in time, this process is ended.
        """
        next_poll = time.monotonic() + POLL_EVERY_S
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), self._open_client:
            while not self.over.wait(LOOK_EVERY_S):
                stop = requested_stop()
                if stop is not None:
                    if stop.is_overdue:
                        if stop.waits:
                            say(_OVERDUE.format(stop.limit_s))
                        self._end_overdue(stop)
                elif self._has_ended():
                    self._request_lost()
                elif self.flow_runs and time.monotonic() >= next_poll:
                    self._poll()
                    next_poll = time.monotonic() + POLL_EVERY_S

    def _end_overdue(self, stop: Stop) -> None:
        """End this process, after it has recorded the cancellation in Prefect if it can."""
        # Imported here, because the imported module loads the models' libraries, which a flow has
        # loaded.
        from flows.run_lock import record_stop

        # The context holds Prefect's settings, such as the server's URL.
        record = partial(copy_context().run, record_stop, self.flow_runs, stop)
        recording = threading.Thread(target=record, daemon=True)
        recording.start()
        recording.join(RECORD_LIMIT_S)
        end_at_once(stop.exit_code)

    def _poll(self) -> None:
        """Ask the server for the state of the flow run, and request a stop if it was cancelled."""
        flow_run_id = self.flow_runs[-1]
        try:
            if self._client is None:
                # Keep the client for all requests: a new client reads the certificates of all
                # authorities, which takes longer than a request.
                client = get_client(sync_client=True, httpx_settings={"timeout": ANSWER_LIMIT_S})
                self._client = self._open_client.enter_context(client)
            state = self._client.read_flow_run(flow_run_id).state
        except ObjectNotFound:
            # The flow run was deleted in Prefect.  The flow does not need this record of itself on
            # the server, so continue.
            self._answered_at = self._reached_at = time.monotonic()
            return
        except (httpx.HTTPError, PrefectException, RuntimeError, OSError) as error:
            now = time.monotonic()
            # The server's machine accepts a request even while the server itself is busy, and a
            # proxy or a rate limit in front of the server answers for it (429, 502, 503, ...).
            if isinstance(error, (httpx.ReadTimeout, httpx.HTTPStatusError)):
                self._reached_at = now
            silent, busy = now - self._reached_at, now - self._answered_at
            if silent > SILENCE_LIMIT_S or busy > BUSY_LIMIT_S:
                self._request_lost()
            return
        self._answered_at = self._reached_at = time.monotonic()
        if state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED):
            message = (
                f"flow run {flow_run_id} was cancelled in Prefect: stopping after the units in "
                f"progress; {_RESUMES}."
            )
            request_stop(
                Stop(message, 130, cancels=True, is_cancellation=True, limit_s=UNIT_LIMIT_S)
            )

    def _has_ended(self) -> bool:
        """Return whether the server that this process started has ended."""
        return self._server is not None and self._server.process.poll() is not None

    def _request_lost(self) -> None:
        """Request a stop because the server has ended or does not answer."""
        log, fix = "", "start it again"
        if self._server is not None:
            log, fix = f" (its log is {self._server.log})", "look at its log"
        message = (
            f"ldmprobe: the Prefect server at {without_password(self._url)} has ended or does not "
            f"answer{log}. What is complete is kept. Fix: {fix}, and repeat the command, which "
            "goes on from there."
        )
        request_stop(Stop(message, 3, cancels=False, waits=False, limit_s=LOST_LIMIT_S))


started_servers: list[ServerProcess] = []
"""The Prefect server that this process started, as long as it is in use; empty if there is none."""

_watches: list[FlowWatch] = []
"""The watches in use, innermost last, because one flow can run inside another one's watch."""

flow_ran = threading.Event()


def begin_watch(flow: Any, flow_run: Any, state: Any) -> None:
    """Start to watch a flow run; Prefect calls this as the flow's ``on_running`` hook.

    This is a module-level function because Dask pickles the flow with its hooks to send it to
    workers, and a method of `FlowWatch` cannot be pickled.
    """
    if _watches:
        _watches[-1].begin(flow_run.id)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    """Request a stop at the first signal, and end the process at once at the second."""
    if not request_stop(Stop(_STOPPING, 128 + number, limit_s=UNIT_LIMIT_S)):
        end_at_once(128 + number)


def end_at_once(exit_code: int) -> None:
    """End this process and the server that it started, without waiting for threads."""
    for server in started_servers:
        with suppress(Exception):
            server.process.terminate()
    show_cursor()
    os._exit(exit_code)


def limit_exit(exit_code: int) -> None:
    """End this process if it ran a flow and does not exit within `EXIT_LIMIT_S`.

    If it does not exit within `ANNOUNCE_EXIT_S`, it says what it waits for.  Python waits for all
    threads before it exits, and Prefect's threads may wait for a lost server.  A process whose main
    thread is still at work, such as a test that calls the command line as a function, is not ended.
    """

    def end() -> None:
        if not threading.main_thread().is_alive():
            end_at_once(exit_code)

    def announce() -> None:
        if not threading.main_thread().is_alive():
            say("Waiting for the threads of Prefect to end.")

    if flow_ran.is_set():
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        for seconds, function in ((ANNOUNCE_EXIT_S, announce), (EXIT_LIMIT_S, end)):
            timer = threading.Timer(seconds, function)
            timer.daemon = True
            timer.start()
