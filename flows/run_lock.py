"""Lock that lets only one flow at a time work on a run.

A flow holds the run's lease (`ldmprobe_core.storage.lease`) while it works.  If an earlier flow run
died without releasing the lease, the next flow marks that flow run as crashed in Prefect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound, Pause, PrefectException, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Crashed, Suspended

from flows.pause_watch import SUSPENSION_EVENT, PauseWatch
from ldmprobe_core.errors import without_logins
from ldmprobe_core.pipeline.planning.plan import StudyPlan, plan_of
from ldmprobe_core.pipeline.prepare import run_in
from ldmprobe_core.storage.lease import Lease, hold_lease
from ldmprobe_core.storage.lifecycle.lease_files import Holder, last_holder
from ldmprobe_core.study.schema import Study
from tasks.stopping import Stop, StoppedError, request_stop, requested_stop, require_not_stopped

_WHO = "flow run "
_PAGE = 200
_NOTE_EVERY_S = 60.0
_WAIT_MORE = (
    "schedule the flow runs further apart, raise schedule.wait_minutes, or stop that process and "
    "retry this flow run"
)

UNIT_PATIENCE_S = 900.0
"""Seconds that a resumed flow run waits for the units in progress of its earlier process."""


@contextmanager
def hold_run(url: str, wait_minutes: int | None = None) -> Iterator[Lease]:
    """Hold the lease of a run, or of one of its interventions, for the calling flow.

    Meanwhile a thread watches whether the flow run is paused in Prefect.

    Args:
        url: URL of the run or intervention.
        wait_minutes: longest time to wait for another flow run that holds the lease, for a flow
            run that a schedule started; None does not wait.

    Raises:
        UserError: another flow run that is still alive holds the lease.
        StoppedError: a stop was requested while this flow run waited.
        Pause: the flow run was suspended in Prefect.
    """
    who = f"{_WHO}{runtime.flow_run.id}"
    earlier = last_holder(url)
    # A flow run that is resumed soon after it was suspended starts while its earlier process still
    # waits for the units in progress.  That may be on a machine with another clock, so the age of
    # its last heartbeat says nothing; `hold_lease` finds out whether others follow.
    resumed = earlier is not None and earlier.description == who and not earlier.is_dead
    patience = UNIT_PATIENCE_S if resumed else 0.0
    options: dict[str, Any] = {"on_lost": lambda: request_stop(_taken_over(url))}
    if wait_minutes is not None:
        patience = max(patience, 60.0 * wait_minutes)
        options |= {"on_wait": waiting_notes(url, wait_minutes), "remedy": _WAIT_MORE}
    with hold_lease(url, who, patience, **options) as lease, PauseWatch(runtime.flow_run.id):
        expired = {holder.description.removeprefix(_WHO) for holder in lease.previous}
        unmarked = {run for run in expired if not _reconcile(run)}
        try:
            yield lease
        except Pause:
            # Prefect's engine noticed the suspension before this process's watch.
            _tell_suspension()
            raise
        except StoppedError as error:
            stop = requested_stop()
            if stop is None or not stop.suspends:
                raise
            _tell_suspension()
            # Prefect's engine expects this signal from a flow run that was suspended.  With any
            # other exception, it would record the flow run as failed.
            raise Pause(stop.message, state=Suspended()) from error
        finally:
            stop = requested_stop()
            if stop is not None and not stop.waits:
                # The Prefect server is lost, so the end of this flow run cannot be recorded.  Leave
                # the lease to expire, so that the next flow run records the end.
                lease.abandon()
            # The server refused at the start to mark these earlier flow runs as crashed, so try
            # once more.
            for run in unmarked:
                _reconcile(run)


def _taken_over(url: str) -> Stop:
    """Return the request to stop a flow whose run another process has taken over."""
    return Stop(
        f"{url} was taken over by another process while this one was suspended: the flow ends "
        "after the units in progress.",
        3,
        cancels=False,
    )


def _tell_suspension() -> None:
    """Emit the Prefect event that says that this process of a suspended flow run ends."""
    emit_event(SUSPENSION_EVENT, {"prefect.resource.id": f"prefect.flow-run.{runtime.flow_run.id}"})


def waiting_notes(
    url: str, wait_minutes: int, now: Callable[[], float] = time.monotonic
) -> Callable[[Holder], None]:
    """Return a function that logs, at most once a minute, for whom this flow run waits.

    The function raises `StoppedError` if a stop was requested.

    Args:
        url: URL of the run whose lease another process holds.
        wait_minutes: longest time to wait, which the log names.
        now: clock in seconds.
    """
    logger, started = get_run_logger(), now()
    last: float | None = None

    def note(holder: Holder) -> None:
        nonlocal last
        require_not_stopped()
        if last is None or now() - last >= _NOTE_EVERY_S:
            last = now()
            # A holder whose lease cannot be read has no known process.
            host = holder.host.partition("/")[0]
            process = f" (process {holder.pid} on {host})" if host else ""
            logger.info(
                "waiting for %s, on which %s%s works: %.0f of at most %d minutes",
                url, holder.description, process, (last - started) / 60, wait_minutes,
            )  # fmt: skip

    return note


@contextmanager
def hold_study(
    study: Study, store: str, wait_minutes: int | None = None
) -> Iterator[tuple[StudyPlan, Lease]]:
    """Plan a study and hold the lease of its run, which need not exist yet.

    If this process has already planned the study and still uses that plan, it is not computed
    again.

    Args:
        study: study to carry out.
        store: folder or bucket that contains runs.
        wait_minutes: as in `hold_run`.

    Raises:
        UserError: the study has a mistake, this machine lacks something that the study needs, or
            another flow run that is still alive holds the lease.
    """
    plan = plan_of(study)
    plan.require_complete()
    with plan.in_use(), hold_run(run_in(store, plan.study).url, wait_minutes) as lease:
        yield plan, lease


def _reconcile(flow_run_id: str) -> bool:
    """Mark a flow run that died while it held the lease, and its task runs, as crashed in Prefect.

    Returns:
        whether the server accepted the marks.
    """
    logger = get_run_logger()
    message = (
        f"its process ended without a report; flow run {runtime.flow_run.id} continues its work"
    )
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(flow_run_id))
            for task in task_runs(client, run.id):
                if not (task.state and task.state.is_final()):
                    client.set_task_run_state(task.id, Crashed(message=message), force=True)
            # Prefect's Retry button starts a flow again under the same id.  In that case the id is
            # that of this flow run, which has not crashed and must not be marked.
            again = flow_run_id == str(runtime.flow_run.id)
            if not again and not (run.state and run.state.is_final()):
                client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    except (ObjectNotFound, PrefectHTTPStatusError, httpx.HTTPError, ValueError) as error:
        # The flow run may belong to another server.  The mark is only shown in the UI, so continue
        # without it.
        reason = without_logins(str(error))
        logger.warning("flow run %s was not marked as crashed: %s", flow_run_id, reason)
        return False
    logger.info("flow run %s had died; this flow run continues its work", flow_run_id)
    return True


def task_runs(client: SyncPrefectClient, flow_run_id: UUID) -> list[TaskRun]:
    """Return every task run of a flow run that the server has recorded."""
    runs: list[TaskRun] = []
    of_flow_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    while True:
        page = client.read_task_runs(flow_run_filter=of_flow_run, limit=_PAGE, offset=len(runs))
        runs += page
        if len(page) < _PAGE:
            return runs


def record_stop(flow_runs: list[Any], stop: Stop) -> None:
    """Mark flow runs and their unfinished task runs as cancelled, if ``stop.cancels`` is True.

    A failure of the server is only logged.
    """
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
        reason = without_logins(str(error))
        logging.getLogger("prefect.flow_runs").warning("the stop is not recorded: %s", reason)
