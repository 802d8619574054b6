"""Execution of a flow in this process, until the Prefect server has recorded its end."""

from __future__ import annotations

import logging
import time
from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL

from flows.interruption import FlowWatch, begin_watch, started_servers
from flows.run_lock import record_stop, task_runs
from tasks.display import activity
from tasks.stopping import StoppedError, requested_stop, stoppable

_RECORD_LIMIT_S = 60.0


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
            for run_id in flow_runs:
                wait_for_records(run_id)
        # Send the last log lines to the server now, because it is stopped soon.
        APILogHandler().flush()
    except (httpx.HTTPError, PrefectException) as error:
        logging.getLogger("prefect.flow_runs").warning("records are incomplete: %s", error)


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


def _quiet_console() -> None:
    """Hide Prefect's log from the terminal, where it would break up the progress bars.

    The server still receives every log line, including tracebacks.
    """
    for name in ("", *logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(logging.CRITICAL)
