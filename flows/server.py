"""Prefect server of the command line, which is found or started.

If no server is available, this module starts a temporary one on loopback in its own process, and
stops it after it has recorded every task run of the flow.  Prefect could also start a server inside
the flow's process, but that one may exit before it has stored all events.
"""

from __future__ import annotations

import ctypes
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

import httpx
from prefect.events.worker import EventsWorker
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_API_AUTH_STRING,
    get_current_settings,
    temporary_settings,
)

from flows.checks.prefect_api import check_server
from flows.checks.prefect_settings import without_password
from flows.interruption import started_servers
from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage.proxies import bypass_proxies_for_loopback
from tasks.display import activity, print_line

# A server takes 15 s of CPU time to make its tables, which on a busy machine may be minutes.
_START_LIMIT_S = 300.0
_EVENTS_LIMIT_S = 5.0

RECORDING = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
}
"""Environment variables with which a Prefect server records task runs in batches.

By default, it writes each change of a task run's state in a transaction of its own, and events by
twenties.  In a burst, its queues of 10,000 events then fill up, and it drops further ones, so that
task runs are missing in its records (`benchmarks/prefect_load.py`).
"""

WAITING = {"PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "infra.event_queue"}
"""Environment variable with which a Prefect server lets clients wait instead of dropping events.

The server's Python must have this package, so it is not for the image of Prefect's Helm chart.
"""


@dataclass(frozen=True)
class LocalServer:
    """Prefect server that this process started, with its log file.

    Attributes:
        process: the server's process.
        log: file that contains the server's output.
        url: URL of the server's API.
    """

    process: subprocess.Popen[bytes]
    log: Path
    url: str


@contextmanager
def server_in_advance() -> Iterator[LocalServer | None]:
    """Start the server of `prefect_server` without waiting for it, and stop it on exit.

    A server imports and prepares for seconds, in which this process can do the same.

    Yields:
        the server; None if there may be a server that need not be started.

    Raises:
        UserError: the new server would refuse the credentials of this process.
    """
    bypass_proxies_for_loopback()
    if PREFECT_API_URL.value() or _listens(_usual_port()):
        yield None
        return
    with _server_process() as server:
        yield server


@contextmanager
def prefect_server(may_start: bool = True, in_advance: LocalServer | None = None) -> Iterator[str]:
    """Choose or start a Prefect server, and yield the URL of its API.

    The server is the one that PREFECT_API_URL names.  If that is not set, it is the server on the
    usual port of this machine, provided that `check_server` finds it usable.  Otherwise, a new
    server is started, and stopped when the context ends.

    Args:
        may_start: whether to start a new server if there is none.
        in_advance: server of `server_in_advance`, which is used if there is one.

    Raises:
        UserError: PREFECT_API_URL names a server that cannot be used, or there is no server and
            none may be started.
        RunError: the new server did not start in time; the message names its log.
    """
    bypass_proxies_for_loopback()
    if in_advance is not None:
        _wait_for_start(in_advance)
        with temporary_settings({PREFECT_API_URL: in_advance.url}):
            yield in_advance.url
        return
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
        print_line(f"note: {usual} {check.problem}: this run starts a server of its own")
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

    Raises:
        UserError: the new server would refuse the credentials of this process.
        RunError: the new server did not start in time; the message names its log.
    """
    with _server_process() as server:
        _wait_for_start(server)
        yield server.url


@contextmanager
def _server_process() -> Iterator[LocalServer]:
    """Start the process of a new Prefect server, yield it at once, and stop it on exit."""
    _require_own_login()
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
        # Keep modules in the current folder, such as a package `infra` of the user's, from being
        # imported instead of the server's, also by processes that the server starts.
        "PYTHONSAFEPATH": "1",
    }
    words = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=RECORDING | WAITING | os.environ | settings,
            # Start the server in a new session, so that it does not receive the terminal's Ctrl-C.
            # This process does, and it stops the server after the end of the flow is recorded.
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    server = LocalServer(process, log, url)
    started_servers.append(server)
    try:
        yield server
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


def _require_own_login() -> None:
    """Check that a new server with Prefect's settings would accept a client with these settings."""
    wanted = PREFECT_SERVER_API_AUTH_STRING.value()
    if wanted is not None and wanted != PREFECT_API_AUTH_STRING.value():
        raise UserError(
            "PREFECT_SERVER_API_AUTH_STRING: a server of this command would refuse the command's "
            "own requests, since PREFECT_API_AUTH_STRING is not the same. Fix: set both to one "
            "user:password, or unset both"
        )


def _wait_for_start(server: LocalServer) -> None:
    """Wait until a new server answers; raise `RunError` if it ends or takes too long."""
    deadline = time.monotonic() + _START_LIMIT_S
    with activity("starting a Prefect server"):
        while not _answers(server.url):
            ended = server.process.poll() is not None
            if ended or time.monotonic() > deadline:
                reason = "" if ended else f" within {_START_LIMIT_S:.0f} s"
                raise RunError(
                    f"the local Prefect server did not start{reason}; its log is {server.log}. "
                    "Fix: read the log, and repeat the command."
                )
            time.sleep(0.2)


def ui_url(api_url: str) -> str:
    """Return the URL of the web UI of the Prefect server with this API, without a password."""
    return without_password(get_current_settings().ui_url or api_url.removesuffix("/api"))


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
