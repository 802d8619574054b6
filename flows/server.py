"""Prefect server of the command line: found or started, and used to run flows.

If no server is available, this module starts a temporary one on loopback in its own process, and
stops it after it has recorded every task run of the flow.  Prefect could also start a server inside
the flow's process, but that one may exit before it has stored all events.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectException
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Cancelled

from flows.checks.prefect_api import check_server
from flows.checks.prefect_settings import without_password
from flows.interruption import FlowWatch, begin_watch, started_servers
from flows.run_lock import task_runs
from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage.proxies import bypass_proxies_for_loopback
from tasks.display import activity
from tasks.stopping import Stop, StoppedError, requested_stop, stoppable

# A server takes 15 s of CPU time to make its tables, which on a busy machine may be minutes.
_START_LIMIT_S = 300.0
_EVENTS_LIMIT_S = 5.0
_RECORD_LIMIT_S = 60.0


@dataclass(frozen=True)
class LocalServer:
    """Prefect server that this process started, with its log file.

    Attributes:
        process: the server's process.
        log: file that contains the server's output.
    """

    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def prefect_server(may_start: bool = True) -> Iterator[str]:
    """Choose or start a Prefect server, and yield the URL of its API.

    The server is the one that PREFECT_API_URL names.  If that is not set, it is the server on the
    usual port of this machine, provided that `check_server` finds it usable.  Otherwise, a new
    server is started, and stopped when the context ends.

    Args:
        may_start: whether to start a new server if there is none.

    Raises:
        UserError: PREFECT_API_URL names a server that cannot be used, or there is no server and
            none may be started.
        RunError: the new server did not start in time; the message names its log.
    """
    bypass_proxies_for_loopback()
    configured = PREFECT_API_URL.value()
    if configured:
        check = check_server(configured)
        if not check.usable:
            address = without_password(configured)
            raise UserError(
                f"PREFECT_API_URL is {address!r}, which {check.problem}. Fix: {check.remedy}"
            )
        yield configured
        return
    port = _usual_port()
    usual = f"http://127.0.0.1:{port}/api"
    if _listens(port):
        check = check_server(usual)
        if check.usable:
            with temporary_settings({PREFECT_API_URL: usual}):
                yield usual
            return
        if not may_start:
            raise UserError(f"{usual} {check.problem}. Fix: {check.remedy}")
        note = f"note: {usual} {check.problem}: this run starts a server of its own"
        print(note, file=sys.stderr, flush=True)
    if not may_start:
        raise UserError(
            f"PREFECT_API_URL is not set, and no server answers at {usual}. Fix: set it to the "
            "server of the deployments; `. .stack/env` does so for `make stack`"
        )
    with start_server() as url, temporary_settings({PREFECT_API_URL: url}):
        yield url


@contextmanager
def start_server() -> Iterator[str]:
    """Start a new Prefect server, yield its API's URL, and stop it on exit.

    Its port is LDMPROBE_PREFECT_PORT if that is set and nothing listens there, else a free one.
    """
    port = _usual_port()
    if "LDMPROBE_PREFECT_PORT" not in os.environ or _listens(port):
        port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    home = Path(PREFECT_HOME.value())
    home.mkdir(parents=True, exist_ok=True)
    log = home / "ldmprobe-server.log"
    settings = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # SQLite allows one writer at a time.  On a busy machine, the other writers may wait longer
        # than Prefect's default timeout, and the flow would fail, so use a longer timeout.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
    }
    words = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=os.environ | settings,
            # Start the server in a new session, so that it does not receive the terminal's Ctrl-C.
            # This process does, and it stops the server after the end of the flow is recorded.
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    server = LocalServer(process, log)
    started_servers.append(server)
    try:
        with activity("starting a Prefect server"):
            _wait_for_start(server, url)
        yield url
    finally:
        started_servers.remove(server)
        if process.poll() is None:
            # Send the events that are still queued before the server stops.  Otherwise this process
            # would retry to send them while it exits.
            EventsWorker.drain_all(timeout=_EVENTS_LIMIT_S, at_exit=False)
        process.terminate()
        with activity("stopping the Prefect server"):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for_start(server: LocalServer, url: str) -> None:
    """Wait until a new server answers; raise `RunError` if it ends or takes too long."""
    deadline = time.monotonic() + _START_LIMIT_S
    while not _answers(url):
        ended = server.process.poll() is not None
        if ended or time.monotonic() > deadline:
            reason = "" if ended else f" within {_START_LIMIT_S:.0f} s"
            raise RunError(
                f"the local Prefect server did not start{reason}; its log is {server.log}. Fix: "
                "read the log, and repeat the command."
            )
        time.sleep(0.2)


def run_flow(flow: Flow[..., Any], **parameters: Any) -> dict[str, Any]:
    """Run a flow in this process, and return its result after the server has recorded it.

    Call this function inside `prefect_server`.  The flow stops early on Ctrl-C, on SIGTERM, if it
    is cancelled in Prefect, and if the server is lost.  Except for a lost server, it first
    finishes the units in progress (`flows.interruption`).

    Args:
        flow: flow to run.
        parameters: parameters of the flow.

    Raises:
        StoppedError: the flow was stopped early.
        Exception: any exception that the flow raises.
    """
    # Copy the flow, so that the hook added below does not stay on the flow object of the caller.
    flow = flow.with_options()
    _quiet_console()
    url = str(PREFECT_API_URL.value())
    server = started_servers[-1] if started_servers else None
    with stoppable(), FlowWatch(url, server) as watch:
        flow.on_running_hooks.append(begin_watch)
        try:
            result = flow(**parameters)
        except BaseException as error:
            stop = requested_stop() or watch.lost_server(error)
            if stop is None:
                _drain(watch.flow_runs)
                raise
            _record_stop(watch.flow_runs, stop)
            raise StoppedError(stop.message, stop.exit_code) from error
        stop = requested_stop()
        # In Prefect, a flow run that is being cancelled can end only as cancelled.  Record that
        # end, even if the flow has completed in the meantime.
        if stop is not None and stop.is_cancellation:
            _record_stop(watch.flow_runs, stop)
            raise StoppedError(stop.message, stop.exit_code)
        _drain(watch.flow_runs)
        return result


def _drain(flow_runs: list[Any]) -> None:
    """Wait until the server has recorded every task run and log line of these flow runs."""
    try:
        with activity("waiting for Prefect to record every task"):
            for run_id in flow_runs:
                wait_for_records(run_id)
        # Send the last log lines to the server now, because it is stopped soon.
        APILogHandler().flush()
    except (httpx.HTTPError, PrefectException) as error:
        logging.getLogger("prefect.flow_runs").warning("records are incomplete: %s", error)


def _record_stop(flow_runs: list[Any], stop: Stop) -> None:
    """Mark flow runs and their unfinished task runs as cancelled, if ``stop.cancels`` is True."""
    if not stop.cancels:
        return
    state: State[Any] = Cancelled(message=stop.message)
    try:
        with get_client(sync_client=True) as client:
            for run_id in flow_runs:
                for task in task_runs(client, run_id):
                    if not (task.state and task.state.is_final()):
                        client.set_task_run_state(task.id, state, force=True)
                client.set_flow_run_state(run_id, state, force=True)
    except (httpx.HTTPError, PrefectException) as error:
        logging.getLogger("prefect.flow_runs").warning("the stop is not recorded: %s", error)


def wait_for_records(flow_run_id: Any) -> int:
    """Wait until every task run of a flow run is in a final state on the server.

    The wait ends early after `_RECORD_LIMIT_S`.

    Returns:
        number of task runs that the server has recorded.
    """
    deadline = time.monotonic() + _RECORD_LIMIT_S
    last, quiet_since = -1, time.monotonic()
    with get_client(sync_client=True) as client:
        while True:
            runs = task_runs(client, flow_run_id)
            final = sum(bool(run.state and run.state.is_final()) for run in runs)
            if (final, len(runs)) != (last, len(runs)):
                last, quiet_since = final, time.monotonic()
            settled = time.monotonic() - quiet_since > 1.5 and final == len(runs)
            if settled or time.monotonic() > deadline:
                return len(runs)
            time.sleep(0.3)


def ui_url(api_url: str) -> str:
    """Return the URL of the web UI of the Prefect server with this API."""
    return get_current_settings().ui_url or api_url.removesuffix("/api")


def _die_with_parent() -> None:
    """Ask Linux to end the server when its parent ends, even if the parent is killed."""
    # Python has no name for PR_SET_PDEATHSIG, so use its value in the C header sys/prctl.h.
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _usual_port() -> int:
    """Return the Prefect server's port from LDMPROBE_PREFECT_PORT, or else the default, 4200."""
    text = os.environ.get("LDMPROBE_PREFECT_PORT", "4200")
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise UserError(f"LDMPROBE_PREFECT_PORT is {text!r}. Fix: give a port number, such as 4200")
    return int(text)


def _quiet_console() -> None:
    """Hide Prefect's log from the terminal, where it would break up the progress bars.

    The server still receives every log line, including tracebacks.
    """
    for name in ("", *logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(logging.CRITICAL)


def _listens(port: int) -> bool:
    """Return whether a program accepts connections on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    """Return whether the Prefect API at a URL reports that it is healthy."""
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    """Return a free port that is not the usual port of a Prefect server.

    Other runs would use a server on the usual port.  They must not depend on this one, which is
    stopped when its own run ends.
    """
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port != _usual_port():
            return port
