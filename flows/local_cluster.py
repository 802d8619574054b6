"""Dask cluster of worker processes on this machine.

Each worker process also imports this module at its start, and Dask then calls `dask_setup` in it.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

import dask
from distributed import Nanny, Scheduler, SpecCluster

from flows.checks.worker_memory import machine_memory
from ldmprobe_core.errors import UserError, counted

_WORKER_CONFIG = {
    # Spilling and pausing are off, because they do not help here: task results are small, and a
    # paused worker would never finish its unit.  At 95% of the limit, Dask's nanny process ends the
    # worker and starts it again.
    "distributed": {"worker": {"memory": {"target": False, "spill": False, "pause": False}}}
}
_SCHEDULER_CONFIG = {
    # A worker receives one task at a time.  If it dies, Dask counts the death against every task
    # that it held, and tasks that only waited in its queue should not be blamed.
    "distributed.scheduler.worker-saturation": 1.0
}


class _LocalCluster(SpecCluster):
    """Dask cluster that can be closed even if it lost a worker while this worker was starting."""

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # Ignore the KeyError that Distributed raises if a worker is lost before the cluster has
        # read the report of this worker's start.  The error would end the cluster's watch over its
        # workers, and appear again when the cluster is closed.
        with suppress(KeyError):
            super()._update_worker_status(op, msg)


def local_cluster(workers: int, gpus: int, memory: int | None = None) -> SpecCluster:
    """Start a cluster of worker processes on this machine, each with one thread.

    Args:
        workers: number of worker processes.
        gpus: number of GPUs of each worker, which is 0 or 1.
        memory: memory limit of a worker in bytes; None gives each worker an equal share of the
            machine's memory.

    Raises:
        UserError: each worker needs a GPU, and the machine has fewer GPUs than workers.
    """
    visible = _visible_gpus() if gpus else []
    if gpus and workers > len(visible):
        raise UserError(
            f"execution.workers is {workers}, but this machine has "
            f"{counted(len(visible), 'GPU')}. Fix: lower it to at most one worker for each GPU."
        )
    home = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(_SCHEDULER_CONFIG):
        return _LocalCluster(
            scheduler={"cls": Scheduler, "options": {**home, "port": 0}},
            workers={
                i: {
                    "cls": Nanny,
                    "options": {
                        **home,
                        "nthreads": 1,
                        "memory_limit": memory or machine_memory() // workers,
                        "config": dask.config.merge(dask.config.config, _WORKER_CONFIG),
                        "preload": [__name__],
                        "preload_argv": [],
                        "resources": {"GPU": gpus} if gpus else {"CPU": 1},
                        "env": {"CUDA_VISIBLE_DEVICES": visible[i]} if gpus else {},
                    },
                }
                for i in range(workers)
            },
        )


def dask_setup(_worker: Any) -> None:
    """Make a worker process ignore Ctrl-C; Dask calls this function when the worker starts.

    A terminal sends Ctrl-C to the workers as well as to the flow's process.  The workers ignore
    it, so that they finish their units while the flow stops.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, which CUDA_VISIBLE_DEVICES limits."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
