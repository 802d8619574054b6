"""Lock that admits one flow at a time to a run: it takes the run's lease (`storage.lease`).

Flow runs that ended without releasing it are marked as crashed in Prefect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.states import Crashed

from ldmprobe_core.pipeline.planning.plan import StudyPlan, plan_of
from ldmprobe_core.pipeline.prepare import run_in
from ldmprobe_core.storage.lease import Lease, hold_lease
from ldmprobe_core.study.schema import Study
from tasks.stopping import requested_stop

_WHO = "flow run "
_PAGE = 200


@contextmanager
def hold_run(url: str) -> Iterator[Lease]:
    """Hold the lease of a run, or of one of its interventions, from within a flow.

    Raises:
        UserError: another flow run that is alive holds it.
    """
    with hold_lease(url, f"{_WHO}{runtime.flow_run.id}") as lease:
        expired = {holder.description.removeprefix(_WHO) for holder in lease.previous}
        unmarked = {run for run in expired if not _reconcile(run)}
        try:
            yield lease
        finally:
            stop = requested_stop()
            if stop is not None and not stop.cancels:
                # The server is lost, so nothing can record this flow run's end: its successor does.
                lease.abandon()
            for run in unmarked:  # the server did not respond before: try once more
                _reconcile(run)


@contextmanager
def hold_study(study: Study, store: str) -> Iterator[tuple[StudyPlan, Lease]]:
    """Plan a study, unless its plan is in use, and hold its run, which need not exist yet.

    Raises:
        UserError: a mistake in the study, a requirement that this machine does not meet, or another
            flow run that is alive holds the run.
    """
    plan = plan_of(study)
    plan.require_complete()
    with plan.in_use(), hold_run(run_in(store, plan.study).url) as lease:
        yield plan, lease


def _reconcile(flow_run_id: str) -> bool:
    """Mark the flow run of an expired holder, and its task runs, as crashed on the server.

    Returns:
        whether the server accepted it.
    """
    logger = get_run_logger()
    message = f"its process ended without a word; flow run {runtime.flow_run.id} goes on from there"
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(flow_run_id))
            for task in task_runs(client, run.id):
                if not (task.state and task.state.is_final()):
                    client.set_task_run_state(task.id, Crashed(message=message), force=True)
            again = flow_run_id == str(runtime.flow_run.id)  # the UI's Retry runs under the same id
            if not again and not (run.state and run.state.is_final()):
                client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    except (ObjectNotFound, PrefectHTTPStatusError, httpx.HTTPError, ValueError) as error:
        # It may have run on another server; the run does not depend on this mark.
        logger.warning("flow run %s was not marked as crashed: %s", flow_run_id, error)
        return False
    logger.info("flow run %s had died; this one goes on from where it was", flow_run_id)
    return True


def task_runs(client: SyncPrefectClient, flow_run_id: UUID) -> list[TaskRun]:
    """All task runs of a flow run that the server knows."""
    runs: list[TaskRun] = []
    of_flow_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    while True:
        page = client.read_task_runs(flow_run_filter=of_flow_run, limit=_PAGE, offset=len(runs))
        runs += page
        if len(page) < _PAGE:
            return runs
