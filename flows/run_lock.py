"""One flow at a time works on a run, and what a dead one left behind on the server is set right."""

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

from ldmprobe_core.pipeline.plan import StudyPlan, plan_of
from ldmprobe_core.pipeline.prepare import run_in
from ldmprobe_core.storage.lease import Lease, hold_lease
from ldmprobe_core.study.schema import Study

_WHO = "flow run "
_PAGE = 200


@contextmanager
def hold_run(url: str) -> Iterator[Lease]:
    """Hold a run, or a part of one, from within a flow.

    Raises:
        UserError: a living flow run holds it.
    """
    with hold_lease(url, f"{_WHO}{runtime.flow_run.id}") as lease:
        dead = {holder.description.removeprefix(_WHO) for holder in lease.previous}
        left = {run for run in dead if not _reconcile(run)}
        try:
            yield lease
        finally:
            for run in left:  # the server was away; maybe it is back
                _reconcile(run)


@contextmanager
def hold_study(study: Study, store: str) -> Iterator[tuple[StudyPlan, Lease]]:
    """Plan a study unless its plan is in use already, and hold its run, which need not exist.

    Raises:
        UserError: a mistake in the study, something that this machine lacks, or a living flow run
            that holds the run.
    """
    plan = plan_of(study)
    plan.require_complete()
    with plan.in_use(), hold_run(run_in(store, plan.study).url) as lease:
        yield plan, lease


def _reconcile(flow_run_id: str) -> bool:
    """Say of a dead flow run, and of its task runs, that they crashed: Prefect cannot know.

    Returns:
        whether the server took it.
    """
    logger = get_run_logger()
    message = f"its process ended without a word; flow run {runtime.flow_run.id} goes on from there"
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(flow_run_id))
            for task in task_runs(client, run.id):
                if not (task.state and task.state.is_final()):
                    client.set_task_run_state(task.id, Crashed(message=message), force=True)
            again = flow_run_id == str(runtime.flow_run.id)  # the UI's Retry: the same, alive
            if not again and not (run.state and run.state.is_final()):
                client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    except (ObjectNotFound, PrefectHTTPStatusError, httpx.HTTPError, ValueError) as error:
        # It may have run on another server.  The work itself does not depend on this.
        logger.warning("flow run %s was not marked as crashed: %s", flow_run_id, error)
        return False
    logger.info("flow run %s had died; this one goes on from where it was", flow_run_id)
    return True


def task_runs(client: SyncPrefectClient, flow_run_id: UUID) -> list[TaskRun]:
    """Every task run of a flow run that the server has."""
    found: list[TaskRun] = []
    which = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    while True:
        page = client.read_task_runs(flow_run_filter=which, limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            return found
