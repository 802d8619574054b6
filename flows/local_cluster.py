"""Dask cluster of worker processes on this machine; also preloaded by those processes."""

from __future__ import annotations

import os
import signal
from typing import Any

import dask
from distributed import Nanny, Scheduler, SpecCluster

from flows.checks.worker_memory import machine_memory
from ldmprobe_core.errors import UserError

_WORKER_CONFIG = {
    # Results are small: a worker near its limit is not helped by spilling or pausing, which would
    # let its unit wait for ever.  At 95% of the limit its nanny ends and restarts it.
    "distributed": {"worker": {"memory": {"target": False, "spill": False, "pause": False}}}
}
_SCHEDULER_CONFIG = {
    # Give a worker one task at a time, so that its death is not counted against queued units.
    "distributed.scheduler.worker-saturation": 1.0
}


def local_cluster(workers: int, gpus: int, memory: int | None = None) -> SpecCluster:
    """Cluster of one-thread worker processes on this machine, each with its own GPU if asked for.

    Args:
        gpus: GPUs a worker, 0 or 1.
        memory: limit of a worker in bytes; None for an equal share of the machine's memory.

    Raises:
        UserError: there are fewer GPUs than workers.
    """
    visible = _visible_gpus() if gpus else []
    if gpus and workers > len(visible):
        raise UserError(
            f"execution.workers is {workers}, and this machine has {len(visible)} GPUs. Fix: lower "
            "it to one worker a GPU"
        )
    home = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(_SCHEDULER_CONFIG):
        return SpecCluster(
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
    """Ignore Ctrl-C in a worker process, which a terminal sends to the whole process group.

    The flow's process receives it too, and stops after the units in progress.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, by CUDA_VISIBLE_DEVICES if it is set."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
