"""Workers of a flow, which are threads or Dask workers, and submission of units to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import dask
from distributed import Client
from prefect import Task
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.checks.cluster_file import cluster_spec
from flows.local_cluster import local_cluster
from flows.worker_watch import WorkerWatch
from ldmprobe_core.errors import UserError
from ldmprobe_core.study.sections import Execution
from tasks.failures import end_units
from tasks.stopping import requested_stop

if TYPE_CHECKING:
    from tasks.references import UnitRef

ANSWER_LIMIT_S = 20.0


@contextmanager
def workers_of(execution: Execution, memory: int | None = None) -> Iterator[None]:
    """Run every task that a flow submits inside this context on the workers that the study names.

    A deployed flow gets its task runner from Prefect before it receives its study, so this context
    replaces that task runner.  It also watches Dask workers (`flows.worker_watch`).

    Args:
        execution: section of the study that describes the workers.
        memory: memory limit of a local Dask worker in bytes; None gives each worker an equal share
            of the machine's memory.

    Raises:
        UserError: the Dask scheduler of the study does not respond, has no workers, or has no
            worker with as many GPUs as a task needs.
    """
    flow = FlowRunContext.get()
    if flow is None:
        raise RuntimeError(
            "workers_of: there is no running Prefect flow. Fix: call it inside a flow."
        )
    if execution.address:
        _require_workers(execution.address, execution.gpus_per_worker)
    with (
        runner_of(execution, memory) as runner,
        flow.model_copy(update={"task_runner": runner}),
        _watch_of(runner, execution),
    ):
        try:
            yield
        except BaseException:
            # Units on Dask workers, such as labels of the last batches, would go on after the flow
            # has freed the lease of its run.  That happens if the flow run was suspended, where
            # Prefect raises `Pause`, or cancelled: its Prefect worker sends SIGTERM, and SIGKILL 30
            # seconds later.  SIGTERM raises `TerminationSignal`, which a library in whose call it
            # arrives may replace by an exception of its own, so this handles every exception.
            stop = requested_stop()
            if execution.runner == "dask" and (stop is None or stop.waits):
                # The units cannot be followed if the scheduler was lost; the first exception
                # then says why the flow ends.
                with suppress(Exception):
                    end_units(getattr(runner, "client"))  # noqa: B009
            raise


def _watch_of(runner: TaskRunner[Any], execution: Execution) -> AbstractContextManager[Any]:
    """Return the watch over the Dask workers of a runner; without Dask, it does nothing."""
    if execution.runner == "local":
        return nullcontext()
    # Reading `client` starts the Dask cluster.  `getattr` makes this side effect visible.
    client: Client = getattr(runner, "client")  # noqa: B009
    return WorkerWatch(client, None if execution.elsewhere else client.cluster)


def submit_units(
    unit_task: Task[..., Any],
    units: list[UnitRef],
    after: Sequence[PrefectFuture[Any]] = (),
) -> dict[str, PrefectFuture[Any]]:
    """Submit one task for each unit, and return the tasks' futures by the units' titles.

    Units of a sequential kind, such as those that add to the same accumulator, run one after
    another.  The first part of a unit's index tells which of them belong together.

    Args:
        unit_task: task that carries out one unit.
        units: units to carry out, in order.
        after: one future for each unit, which must end before the unit starts; empty if the units
            do not wait for anything.
    """
    # Imported here, because `UNITS` loads the model libraries, which the rest of this module does
    # not need.
    from ldmprobe_core.pipeline.units import UNITS

    futures: dict[str, PrefectFuture[Any]] = {}
    last: dict[int | str, PrefectFuture[Any]] = {}
    for number, unit in enumerate(units):
        awaited = [after[number]] if after else []
        if UNITS[unit.verb].kind.sequential and unit.index[0] in last:
            awaited.append(last[unit.index[0]])
        future = unit_task.submit(unit=unit, wait_for=awaited, return_state=False)
        futures[unit.title] = last[unit.index[0]] = future
    return futures


def gpu_resources(execution: Execution) -> AbstractContextManager[Any]:
    """Require a GPU for every task that is submitted inside this context, if the study uses GPUs.

    Tasks that train probes are submitted outside this context, so any worker can run them.
    """
    if execution.runner == "local" or not execution.gpus_per_worker:
        return nullcontext()
    return dask.annotate(resources={"GPU": execution.gpus_per_worker})


def runner_of(execution: Execution, memory: int | None = None) -> TaskRunner[Any]:
    """Return the Prefect task runner that the ``execution`` section of a study describes.

    Args:
        execution: section of the study.
        memory: memory limit of a local Dask worker in bytes, as in `workers_of`.
    """
    if execution.runner == "local":
        return ThreadPoolTaskRunner(max_workers=execution.workers)
    from prefect_dask import DaskTaskRunner

    if execution.address:
        return DaskTaskRunner(address=execution.address)
    if execution.cluster:
        return DaskTaskRunner(
            cluster_class="dask_kubernetes.operator.KubeCluster",
            cluster_kwargs={"custom_cluster_spec": cluster_spec(execution)},
        )
    return DaskTaskRunner(
        cluster_class=local_cluster,
        cluster_kwargs={
            "workers": execution.workers,
            "gpus": execution.gpus_per_worker,
            "memory": memory,
        },
    )


def _require_workers(address: str, gpus: int) -> None:
    """Check that a Dask scheduler answers and that its workers have the GPUs that a task needs.

    Without this check, tasks that need more GPUs than any worker has would wait for ever, and
    batches that need none would go to workers with and without a GPU, whose results differ in the
    last bits.
    """
    try:
        with Client(address, timeout=ANSWER_LIMIT_S, set_as_default=False) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
    except (OSError, TimeoutError, ValueError):
        raise UserError(
            f"execution.address is {address!r}, and no Dask scheduler answers there. Fix: start a "
            "scheduler, or use workers on this machine: leave execution.address out, or give "
            "`--set execution.runner=local` to an intervention"
        ) from None
    if not workers:
        raise UserError(
            f"execution.address is {address!r}, a scheduler without workers. Fix: start some with "
            f"`dask worker {address} --nthreads 1`"
        )
    if gpus and not any(worker["resources"].get("GPU", 0) >= gpus for worker in workers):
        raise UserError(
            f"execution.gpus_per_worker is {gpus}, and no worker at {address} declares that many. "
            f'Fix: start workers with `dask worker {address} --nthreads 1 --resources "GPU={gpus}"`'
        )
    with_gpu = [bool(worker["resources"].get("GPU", 0)) for worker in workers]
    if not gpus and any(with_gpu) and not all(with_gpu):
        raise UserError(
            f"execution.gpus_per_worker is 0, and {sum(with_gpu)} of {len(with_gpu)} workers at "
            f"{address} declare a GPU: batches would be computed with and without a GPU, and the "
            "results of the two differ in the last bits. Fix: set execution.gpus_per_worker to 1, "
            "or stop all workers with a GPU, or all without"
        )
