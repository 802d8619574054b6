"""Outcome of units of work: results, errors of the unit, and failures of the workers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from distributed import Future as DaskFuture
from distributed.scheduler import KilledWorker, NoValidWorkerError
from prefect.futures import PrefectFuture, PrefectWrappedFuture


def outcome(future: PrefectFuture[Any]) -> Any:
    """Result of a future that has ended, or the exception of its unit or of its worker.

    A unit's own exception is in the state of its task run; if the worker ended, or the scheduler,
    Dask's future itself raises.
    """
    try:
        return future.result(raise_on_failure=False)
    except (Exception, CancelledError) as error:
        return error


def describe_failure(error: BaseException) -> str:
    """Kind and message of a unit's failure, to follow the unit's name and a comma."""
    if isinstance(error, KilledWorker):
        last = getattr(error.last_worker, "address", error.last_worker)
        return (
            f"whose worker process ended {error.allowed_failures + 1} times while it ran, last at "
            f"{last}: most often for lack of memory"
        )
    if isinstance(error, NoValidWorkerError):
        return "for which there was no Dask worker"
    if isinstance(error, CancelledError):
        return "which was cancelled because the connection to the Dask scheduler was lost"
    return f"{type(error).__name__}: {error}"


def remedy(error: BaseException) -> str:
    """Correction of a unit's failure, as an imperative."""
    again = "run the study again, which repeats only these"
    if isinstance(error, KilledWorker):
        return (
            "compare the memory that `check` expects with the machine's, look at dmesg and at the "
            f"worker's log, lower sampling.batch or execution.workers, and {again}"
        )
    if isinstance(error, (NoValidWorkerError, CancelledError)):
        return f"look at the scheduler and its workers, and {again}"
    return again


def cancel_waiting(futures: Sequence[PrefectFuture[Any]]) -> None:
    """Cancel the units that no worker has started yet."""
    wrapped = [
        future.wrapped_future for future in futures if isinstance(future, PrefectWrappedFuture)
    ]
    on_dask = [future for future in wrapped if isinstance(future, DaskFuture)]
    for future in wrapped:
        if not isinstance(future, DaskFuture):
            future.cancel()  # without effect on one that runs
    if on_dask:
        client = on_dask[0].client
        running: set[Any] = set()
        with suppress(OSError, TimeoutError):  # the scheduler may be lost
            for keys in client.run(executing_keys, on_error="ignore").values():
                running |= set(keys)
        client.cancel([future for future in on_dask if future.key not in running], force=True)


def executing_keys(dask_worker: Any) -> list[Any]:
    """Keys of the tasks that a Dask worker runs; called on the worker."""
    return [task.key for task in dask_worker.state.executing]
