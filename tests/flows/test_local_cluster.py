"""Dask workers of this machine: memory limit, replacement, and units that end them."""

import os
import signal
import time
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest
from dask_units import deadly_unit, process_id, unit
from distributed import Client
from distributed.scheduler import KilledWorker, NoValidWorkerError
from prefect import flow
from prefect.testing.utilities import prefect_test_harness

from flows import worker_watch
from flows.local_cluster import local_cluster
from flows.worker_watch import WorkerWatch
from flows.workers import workers_of
from ldmprobe_core.study.sections import Execution
from tasks.failures import describe_failure, remedy
from tasks.progress import StageError, follow
from tasks.stopping import requested_stop, stoppable

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
def test_worker_watch_replaces_workers_that_the_cluster_gave_up(cluster, monkeypatch):
    """Dask gives a nanny up if its worker is not back in time: here at once."""
    monkeypatch.setattr(worker_watch, "_LOOK_EVERY_S", 0.5)
    specs, client = cluster
    before = set(client.run(process_id).values())
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}), stoppable():
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while specs.workers:  # the cluster closes both nannies, and forgets them
            assert time.monotonic() < deadline
            time.sleep(0.05)  # polling, bounded by the deadline
        with WorkerWatch(client, specs):
            client.wait_for_workers(2, timeout=120)
            assert requested_stop() is None
    assert not before & set(client.run(process_id).values())


def test_worker_watch_stops_a_flow_that_has_no_workers(monkeypatch, capfd):
    monkeypatch.setattr(worker_watch, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(worker_watch, "ABSENCE_LIMIT_S", 0.2)

    def no_scheduler(*_, **__):
        raise OSError("connection refused")

    for answer in (lambda *_, **__: {"workers": {}}, no_scheduler):
        client = SimpleNamespace(sync=answer, scheduler=SimpleNamespace(identity=None))
        with stoppable(), WorkerWatch(client, None):
            deadline = time.monotonic() + 60
            while requested_stop() is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)  # polling, bounded by the deadline
            stop = requested_stop()
        assert (stop.exit_code, stop.waits) == (3, False)
        assert "no Dask worker" in capfd.readouterr().err


@flow
def deadly_flow(folder: str) -> None:
    with workers_of(Execution(runner="dask", workers=2)):
        units = {f"batch {i}": unit.submit(i) for i in range(3)}
        units["batch deadly"] = deadly_unit.submit(folder)
        units |= {f"batch {i}": unit.submit(i) for i in range(3, 6)}
        try:
            follow("generate", units)
        finally:
            done = sum(not name.endswith("deadly") and u.result() >= 0 for name, u in units.items())
            (Path(folder) / "done").write_text(str(done))


@pytest.mark.slow
def test_follow_names_a_unit_that_ends_its_worker_each_time(tmp_path):
    with (
        prefect_test_harness(server_startup_timeout=120),
        pytest.raises(StageError) as failure,
    ):
        deadly_flow(str(tmp_path))
    sentence = str(failure.value)
    assert sentence.startswith("1 of 7 units of generate failed, the first being batch deadly, ")
    assert "ended 4 times" in sentence
    assert "memory" in sentence
    assert sentence.count("Fix: ") == 1
    assert (tmp_path / "deaths").read_text() == "xxxx"
    assert (tmp_path / "done").read_text() == "6"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KilledWorker("unit", SimpleNamespace(address="tcp://a:1"), 3), "4 times"),
        (KilledWorker("unit", "tcp://a:1", 0), "1 times"),
        (NoValidWorkerError("unit", set(), set(), {}, 1.0), "no Dask worker"),
        (CancelledError(), "connection to the Dask scheduler was lost"),
        (ValueError("shapes"), "ValueError: shapes"),
    ],
)
def test_describe_failure_of_units_and_of_workers(error, words):
    assert words in describe_failure(error)
    assert "run the study again" in remedy(error)
