"""Execution of a flow in this process, until the Prefect server has recorded its end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectException
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL

from flows.interruption import FlowWatch, begin_watch, started_servers
from flows.run_lock import record_stop
from ldmprobe_core.errors import without_logins
from tasks.display import activity
from tasks.stopping import StoppedError, requested_stop, stoppable

RECORD_LIMIT_S = 60.0
"""Seconds without a new record after which the end of the records is not waited for."""

QUIET_S = 2.5
"""Seconds without a new record after which no further task runs are expected.

The server writes its records once a second (`flows.server.RECORDING`).
"""


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
            record_stop(watch.flow_runs, stop)
            raise StoppedError(stop.message, stop.exit_code) from error
        stop = requested_stop()
        # In Prefect, a flow run that is being cancelled can end only as cancelled.  Record that
        # end, even if the flow has completed in the meantime.
        if stop is not None and stop.is_cancellation:
            record_stop(watch.flow_runs, stop)
            raise StoppedError(stop.message, stop.exit_code)
        _drain(watch.flow_runs)
        return result


def _drain(flow_runs: list[Any]) -> None:
    """Wait until the server has recorded every task run and log line of these flow runs."""
    try:
        with activity("waiting for Prefect to record every task"):
            # A server that is busy lets this process wait before it sends further events.
            events = EventsWorker.instance()
            sending = threading.Thread(target=events.wait_until_empty, daemon=True)
            sending.start()
            for run_id in flow_runs:
                wait_for_records(run_id, sending.is_alive)
        # Send the last log lines to the server now, because it is stopped soon.
        APILogHandler().flush()
    except (httpx.HTTPError, PrefectException) as error:
        reason = without_logins(str(error))
        logging.getLogger("prefect.flow_runs").warning("records are incomplete: %s", reason)


def wait_for_records(flow_run_id: Any, sending: Callable[[], bool] = lambda: False) -> int:
    """Wait until every task run of a flow run is in a final state on the server.

    The wait ends early if the server records nothing new for `RECORD_LIMIT_S`.

    Args:
        flow_run_id: id of the flow run.
        sending: function that returns whether this process still has events to send, so that
            further task runs are expected.

    Returns:
        number of task runs that the server has recorded.
    """
    last, changed_at, sent_at = (-1, -1), time.monotonic(), 0.0
    with get_client(sync_client=True) as client:
        while True:
            final, count = (_count(client, flow_run_id, which) for which in (_FINAL, {}))
            if (final, count) != last:
                last, changed_at = (final, count), time.monotonic()
            if sending():
                sent_at = time.monotonic()
            quiet = time.monotonic() - changed_at
            settled = min(quiet, time.monotonic() - sent_at) > QUIET_S
            if (final == count and settled) or quiet > RECORD_LIMIT_S:
                return count
            time.sleep(0.3)


_FINAL = {"state": {"type": {"any_": sorted(state.value for state in TERMINAL_STATES)}}}
"""Filter of Prefect's API for task runs in a final state."""


def _count(client: SyncPrefectClient, flow_run_id: Any, which: dict[str, Any]) -> int:
    """Return the number of a flow run's task runs that pass a filter.

    Counting takes one request, where reading the task runs takes one for every 200 of them.
    """
    filters = {"flow_runs": {"id": {"any_": [str(flow_run_id)]}}, "task_runs": which}
    return int(client.request("POST", "/task_runs/count", json=filters).json())


def _quiet_console() -> None:
    """Hide Prefect's log from the terminal, where it would break up the progress bars.

    The server still receives every log line, including tracebacks.
    """
    for name in ("", *logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(logging.CRITICAL)
