"""Outcome of units of work, and descriptions of failures of units and of their workers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from distributed import Client
from distributed import Future as DaskFuture
from distributed.scheduler import KilledWorker, NoValidWorkerError
from prefect.futures import PrefectFuture, PrefectWrappedFuture

from ldmprobe_core.errors import LdmprobeError, without_logins

_LOOK_EVERY_S = 0.3


def outcome(future: PrefectFuture[Any]) -> Any:
    """Return the result of a future that has ended, or the exception with which it failed.

    An exception that the unit raised is the result of its task run, so Prefect returns it here.  If
    the worker or the Dask scheduler ended, there is no such result, and Dask raises an exception.
    """
    try:
        return future.result(raise_on_failure=False)
    except (Exception, CancelledError) as error:
        return error


def describe_failure(error: BaseException) -> str:
    """Return a phrase that tells why a unit of work failed, for an error message.

    The caller puts the description after the unit's name and a comma in an error message.
    """
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
    # The command line prints errors as one line.
    message = " ".join(str(error).split())
    if isinstance(error, LdmprobeError):
        return message
    return without_logins(f"{type(error).__name__}: {message}")


def failure_and_remedy(error: BaseException) -> str:
    """Return why a unit of work failed, as `describe_failure` does, with advice to the user."""
    description = describe_failure(error)
    # Errors of this project end with a remedy.
    return description if ". Fix: " in description else f"{description}. Fix: {remedy(error)}"


def remedy(error: BaseException) -> str:
    """Return advice to the user, as an imperative, on how to recover from a failed unit."""
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
    """Cancel those futures whose units no worker has started yet."""
    wrapped = [
        future.wrapped_future for future in futures if isinstance(future, PrefectWrappedFuture)
    ]
    on_dask = [future for future in wrapped if isinstance(future, DaskFuture)]
    for future in wrapped:
        if not isinstance(future, DaskFuture):
            # Cancelling has no effect on a future whose unit is already running.
            future.cancel()
    if on_dask:
        client = on_dask[0].client
        # If the scheduler cannot be reached, the running units stay unknown, and the call below
        # cancels all units.
        running: set[Any] = set()
        with suppress(OSError, TimeoutError):
            running = _running(client)
        client.cancel([future for future in on_dask if future.key not in running], force=True)


def end_units(client: Client) -> None:
    """Cancel those units of a Dask client that no worker has started, and wait for the others.

    Raises:
        OSError: the scheduler cannot be reached.
    """
    own = set(client.futures)
    waiting = own - _running(client)
    client.cancel([DaskFuture(key, client) for key in waiting], force=True)
    while own & _running(client):
        time.sleep(_LOOK_EVERY_S)


def _running(client: Client) -> set[Any]:
    """Return the keys of the tasks that the workers of a Dask client's scheduler are running."""
    found = client.run(executing_keys, on_error="ignore").values()
    return {key for keys in found for key in keys}


def executing_keys(dask_worker: Any) -> list[Any]:
    """Return the keys of the tasks that a Dask worker is running; Dask calls this on the worker."""
    return [task.key for task in dask_worker.state.executing]
