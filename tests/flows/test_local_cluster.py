"""Tests of Dask workers on this machine: their memory limit, signals and GPUs."""

from __future__ import annotations

import os
import signal

import dask
import pytest
from dask_units import process_id
from distributed import Client

from flows.local_cluster import local_cluster
from ldmprobe_core.errors import UserError

LIMIT = 3 << 30


@pytest.fixture
def cluster():
    with (
        local_cluster(workers=2, gpus=0, memory=LIMIT) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=120)
        yield cluster, client


@pytest.mark.slow
def test_local_cluster_limits_memory_and_ignores_ctrl_c(cluster):
    _, client = cluster
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    assert {worker["memory_limit"] for worker in workers} == {LIMIT}
    config = client.run(lambda: dask.config.get("distributed.worker.memory"))
    assert all(memory["pause"] is False for memory in config.values())
    for pid in client.run(process_id).values():
        os.kill(pid, signal.SIGINT)
    assert len(client.run(process_id)) == 2


@pytest.mark.slow
def test_local_cluster_gives_each_worker_a_visible_gpu(monkeypatch):
    from distributed import Client

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with pytest.raises(UserError, match=r"execution.workers is 3.*has 2 GPUs"):
        local_cluster(workers=3, gpus=1)
    with local_cluster(workers=2, gpus=1) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        told = client.scheduler_info()["workers"].values()
        assert [w["resources"] for w in told] == [{"GPU": 1.0}] * 2
        assert {w["nthreads"] for w in told} == {1}
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        assert sorted(seen.values()) == ["4", "7"]
