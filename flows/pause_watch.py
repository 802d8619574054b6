"""Pauses of a flow run that are requested in Prefect's UI or API.

Prefect has two kinds of pauses.  A flow run that is *paused* keeps its process, which waits.  A
flow run that is *suspended* ends its process, and the worker of its deployment starts another one
when it is resumed; the pause button of Prefect's UI suspends.  Prefect's engine notices a
suspension of a deployed flow run by itself, but not in units on Dask workers, and a pause not at
all.  This module therefore polls the flow run's state.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import StateType

from tasks.display import activity
from tasks.stopping import (
    PausedError,
    Stop,
    is_paused,
    pause,
    request_stop,
    resume,
    wait_until_resumed,
)
from tasks.watch_thread import WatchThread

T = TypeVar("T")

POLL_EVERY_S = 3.0
"""Interval in seconds between two requests for the state of the flow run."""

SUSPENSION_EVENT = "ldmprobe.flow-run.suspended"
"""Name of the Prefect event of a process that ends because its flow run was suspended.

Prefect's own event of the suspension comes earlier, and heartbeats of the flow run follow it as
long as its units in progress go on.  After this event there are none.
"""


class PauseWatch(WatchThread):
    """Context manager whose thread pauses or ends the flow when Prefect's server says so.

    Args:
        flow_run_id: id of the flow run that executes the block of code.
    """

    def __init__(self, flow_run_id: Any) -> None:
        self._flow_run_id = flow_run_id
        super().__init__("pause-watch")

    def keep_looking(self) -> None:
        """Poll the state of the flow run until the block of code ends.

        A server that does not answer is ignored here: `flows.interruption` handles its loss.
        """
        client: SyncPrefectClient | None = None
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), ExitStack() as stack:
            while not self.over.wait(POLL_EVERY_S):
                try:
                    if client is None:
                        # Keep the client for all requests, as `flows.interruption` does.
                        opened = get_client(sync_client=True, httpx_settings={"timeout": 10.0})
                        client = stack.enter_context(opened)
                    flow_run = client.read_flow_run(self._flow_run_id)
                except (httpx.HTTPError, PrefectException, RuntimeError, OSError):
                    continue
                if not self.over.is_set():
                    obey(flow_run)


def obey(flow_run: FlowRun) -> None:
    """Request a pause or a stop of this process's flow, or end a pause, as its state demands.

    Args:
        flow_run: flow run with its present state on the server.
    """
    state = flow_run.state
    if state is None:
        return
    name = f"flow run {flow_run.id}"
    if state.type != StateType.PAUSED:
        if is_paused() and state.is_final() and state.type != StateType.CANCELLED:
            request_stop(
                Stop(
                    f"{name} was not resumed in time, and has ended in Prefect; the same command "
                    "goes on from there.",
                    130,
                    cancels=False,
                )
            )
        elif state.is_running():
            resume(f"{name} was resumed in Prefect.")
    elif not state.state_details.pause_reschedule:
        pause(
            f"{name} is paused in Prefect: no other unit of work starts until it is resumed there."
        )
    elif flow_run.deployment_id is not None:
        request_stop(
            Stop(
                f"{name} is suspended in Prefect: its process ends after the units in progress, "
                "and a new one goes on from there when it is resumed.",
                130,
                cancels=False,
                suspends=True,
            )
        )
    else:
        request_stop(
            Stop(
                f"{name} was suspended in Prefect, which resumes only runs of a deployment: it "
                "is cancelled after the units in progress; the same command goes on from there.",
                130,
                is_cancellation=True,
            )
        )


def with_pauses(work: Callable[[], T]) -> T:
    """Call ``work``, and call it again, after the flow run is resumed, whenever a pause ends it.

    Args:
        work: function that carries out every unit that is not complete.

    Raises:
        StoppedError: a stop was requested during a pause.
    """
    while True:
        try:
            return work()
        except PausedError:
            with activity("paused in Prefect, until it is resumed there"):
                wait_until_resumed()
