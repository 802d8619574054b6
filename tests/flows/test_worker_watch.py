"""Tests that lost Dask workers are replaced, and that a flow without any worker stops."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import dask
import pytest
from dask_units import process_id
from distributed import Client

from flows import worker_watch
from flows.local_cluster import local_cluster
from flows.worker_watch import WorkerWatch
from tasks.stopping import requested_stop, stoppable


@pytest.mark.slow
def test_worker_watch_replaces_workers_that_the_cluster_gave_up(monkeypatch):
    """Dask drops lost workers almost at once here, and the watch replaces them."""
    monkeypatch.setattr(worker_watch, "LOOK_EVERY_S", 0.5)
    with (
        stoppable(),
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}),
        local_cluster(workers=2, gpus=0) as specs,
        Client(specs, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=120)
        before = set(client.run(process_id).values())
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while specs.workers:  # until the cluster has dropped both workers
            assert time.monotonic() < deadline
            time.sleep(0.05)  # polling, bounded by the deadline
        with WorkerWatch(client, specs):
            client.wait_for_workers(2, timeout=120)
            assert requested_stop() is None
        assert not before & set(client.run(process_id).values())


def test_worker_watch_stops_a_flow_that_has_no_workers(monkeypatch, capfd):
    monkeypatch.setattr(worker_watch, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(worker_watch, "ABSENCE_LIMIT_S", 0.2)

    def no_scheduler(*_, **__):
        raise OSError("connection refused")

    for answer in (lambda *_, **__: {"workers": {}}, no_scheduler):
        client = SimpleNamespace(sync=answer, scheduler=SimpleNamespace(identity=None))
        with stoppable(), WorkerWatch(client, None):
            deadline = time.monotonic() + 60
            while (stop := requested_stop()) is None:  # the thread prints its message before this
                assert time.monotonic() < deadline
                time.sleep(0.05)  # polling, bounded by the deadline
            assert "no Dask worker" in capfd.readouterr().err
        assert (stop.exit_code, stop.waits) == (3, False)
