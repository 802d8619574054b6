"""Where units of work run, and what is refused before any of them is submitted."""

from __future__ import annotations

import pytest
from distributed import LocalCluster
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.testing.utilities import prefect_test_harness

from flows.workers import gpu_resources, runner_of, workers_of
from infra.stack import free_ports
from ldmprobe_core.errors import UserError
from ldmprobe_core.study.sections import Execution


@task
def whose() -> str:
    import threading

    return threading.current_thread().name


@flow
def asking(execution: Execution) -> list[str]:
    with workers_of(execution):
        with gpu_resources(execution):
            first = whose.submit()
        return [first.result(), whose.submit().result()]


@pytest.fixture(scope="module")
def server():
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def cluster():
    """A scheduler with one worker that has no GPU."""
    with LocalCluster(
        n_workers=1,
        processes=False,
        dashboard_address=None,
        protocol="tcp",
        host="127.0.0.1",
        resources={"CPU": 1},
    ) as made:
        yield made.scheduler_address


def test_local_workers_are_threads_of_the_flow(server):
    runner = runner_of(Execution(workers=3))
    assert isinstance(runner, ThreadPoolTaskRunner)
    assert runner._max_workers == 3
    assert all("ThreadPoolExecutor" in name for name in asking(Execution()))


def test_a_flow_learns_of_its_workers_from_its_parameters(server, cluster):
    assert all("Dask" in name for name in asking(Execution(runner="dask", address=cluster)))


def test_a_task_that_no_worker_may_take_is_not_submitted(server, cluster):
    execution = Execution(runner="dask", address=cluster, gpus_per_worker=1)
    with pytest.raises(UserError, match=r'gpus_per_worker is 1.*--resources "GPU=1"'):
        asking(execution)


def test_a_scheduler_that_is_not_there(server, monkeypatch):
    monkeypatch.setattr("flows.workers._ANSWER_LIMIT_S", 1.0)
    (port,) = free_ports(1)
    with pytest.raises(UserError, match=r"no Dask scheduler answers there"):
        asking(Execution(runner="dask", address=f"tcp://127.0.0.1:{port}"))


def test_a_scheduler_without_workers(server):
    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address=None, protocol="tcp", host="127.0.0.1"
        ) as empty,
        pytest.raises(UserError, match=r"a scheduler without workers\. Fix: start some"),
    ):
        asking(Execution(runner="dask", address=empty.scheduler_address))
