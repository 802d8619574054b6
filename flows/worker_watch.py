"""Monitor of Dask workers: replaces lost local ones, and stops the flow if none is left."""

from __future__ import annotations

import time
from typing import Any

from distributed import Client, SpecCluster

from tasks.stopping import Stop, request_stop
from tasks.watch_thread import WatchThread

LOOK_EVERY_S = 3.0
"""Interval in seconds between two counts of the workers."""

ABSENCE_LIMIT_S = 120.0
"""Seconds without any worker after which the flow stops."""


class WorkerWatch(WatchThread):
    """Context manager whose thread counts the workers of a Dask scheduler and replaces lost ones.

    Each local worker has a nanny process that restarts it if it ends.  If the restart takes longer
    than 15 s (``distributed.deploy.lost-worker-timeout``), Dask drops the worker for good.  The
    thread therefore asks the cluster again and again for the original number of workers.

    Args:
        client: client of the scheduler.
        cluster: local cluster whose lost workers are replaced, or None if the workers belong to
            another cluster, which has to replace them itself.
    """

    def __init__(self, client: Client, cluster: SpecCluster | None) -> None:
        self._client, self._cluster = client, cluster
        self._count = len(cluster.worker_spec) if cluster is not None else 0
        super().__init__("worker-watch")

    def keep_looking(self) -> None:
        """Replace lost workers, and request a stop after `ABSENCE_LIMIT_S` without any worker."""
        present_at = time.monotonic()
        while not self.over.wait(LOOK_EVERY_S):
            if self._number():
                present_at = time.monotonic()
            elif time.monotonic() - present_at > ABSENCE_LIMIT_S and not self.over.is_set():
                message = (
                    "ldmprobe: there has been no Dask worker for "
                    f"{ABSENCE_LIMIT_S:.0f} s. What is complete is kept. Fix: look at the workers' "
                    "logs and memory, and repeat the command, which goes on from there."
                )
                request_stop(Stop(message, 3, cancels=False, waits=False, limit_s=20.0))
                return
            if self._cluster is not None and not self.over.is_set():
                self._cluster.scale(self._count)

    def _number(self) -> int:
        """Return the number of Dask workers, or 0 if the scheduler does not respond."""
        try:
            identity: dict[str, Any] = self._client.sync(
                self._client.scheduler.identity, n_workers=-1, callback_timeout=20
            )
        except Exception:
            # Catch every exception, because Dask raises many types of it if the connection to the
            # scheduler is lost.
            return 0
        return len(identity["workers"])
