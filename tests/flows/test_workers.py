"""Tests of the task runners of a study, and of the errors before a unit is submitted."""

from __future__ import annotations

import inspect
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from distributed import Client, LocalCluster
from prefect import flow, task
from prefect.exceptions import TerminationSignal
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic_core import PydanticSerializationError

from flows.checks.cluster_file import cluster_spec
from flows.workers import gpu_resources, runner_of, workers_of
from infra.stack import free_ports
from ldmprobe_core.errors import UserError
from ldmprobe_core.study.sections import Execution

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"


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
def cluster():
    """Start a Dask scheduler with one worker, which has no GPU."""
    with LocalCluster(
        n_workers=1,
        processes=False,
        dashboard_address=None,
        protocol="tcp",
        host="127.0.0.1",
        resources={"CPU": 1},
    ) as made:
        yield made.scheduler_address


def test_runner_of_local_workers_is_a_thread_pool(prefect_api):
    runner = runner_of(Execution(workers=3))
    assert isinstance(runner, ThreadPoolTaskRunner)
    assert runner._max_workers == 3
    assert all("ThreadPoolExecutor" in name for name in asking(Execution()))


def test_workers_of_takes_the_address_of_the_study(prefect_api, cluster):
    assert all("Dask" in name for name in asking(Execution(runner="dask", address=cluster)))


def test_workers_of_refuses_gpus_that_no_worker_declares(prefect_api, cluster):
    execution = Execution(runner="dask", address=cluster, gpus_per_worker=1)
    with pytest.raises(UserError, match=r'gpus_per_worker is 1.*--resources "GPU=1"'):
        asking(execution)


@task
def unit(folder: str, number: int) -> None:
    """Wait for the release of the units that have begun, and leave a file at both ends."""
    (Path(folder) / f"begun {number}").touch()
    deadline = time.monotonic() + 300
    while not (Path(folder) / "release").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # polling for the release, bounded by the deadline
    (Path(folder) / f"ended {number}").touch()


def raise_on_sigterm(replaced: bool) -> None:
    """Raise what SIGTERM raises in a flow."""
    if replaced:
        # As pydantic does if the signal arrives while it serializes the parameters of a unit.
        raise PydanticSerializationError("Error calling function: TerminationSignal: ")
    raise TerminationSignal(signal.SIGTERM)


@flow
def terminated(folder: str, execution: Execution, replaced: bool) -> tuple[set[str], set[str]]:
    """End like a flow run whose worker sends SIGTERM; return the units that had begun and ended."""

    def numbers(what: str) -> set[str]:
        return {path.name.split()[1] for path in Path(folder).glob(f"{what} *")}

    cancel = Client.cancel

    def cancel_and_release(*arguments: Any, **options: Any) -> None:
        """Let the units in progress end once those that wait have been cancelled."""
        cancel(*arguments, **options)
        (Path(folder) / "release").touch()

    with (
        mock.patch.object(Client, "cancel", cancel_and_release),
        suppress(TerminationSignal, PydanticSerializationError),
        workers_of(execution),
    ):
        # Dask forgets a unit whose future is not kept.
        futures = [unit.submit(folder, number) for number in range(8)]
        deadline = time.monotonic() + 300
        while not numbers("begun"):
            assert time.monotonic() < deadline
            time.sleep(0.02)  # polling for the first unit, bounded by the deadline
        raise_on_sigterm(replaced)
    assert len(futures) == 8
    return numbers("begun"), numbers("ended")


@pytest.mark.parametrize("replaced", [False, True])
def test_workers_of_waits_for_the_units_in_progress_of_a_terminated_flow(
    prefect_api, cluster, tmp_path, replaced
):
    """No unit of a cancelled flow run writes after the flow has freed the lease of its run."""
    begun, ended = terminated(str(tmp_path), Execution(runner="dask", address=cluster), replaced)
    assert begun == ended
    assert 1 <= len(ended) < 8


@pytest.mark.parametrize("cpu_workers", [1, 3])
def test_workers_of_refuses_batches_on_workers_of_both_kinds(prefect_api, monkeypatch, cpu_workers):
    workers = {f"cpu-{i}": {"resources": {"CPU": 1.0}} for i in range(cpu_workers)}
    workers["gpu"] = {"resources": {"GPU": 1.0}}
    client = mock.MagicMock()
    client.return_value.__enter__.return_value.scheduler_info.return_value = {"workers": workers}
    monkeypatch.setattr("flows.workers.Client", client)
    refusal = f"gpus_per_worker is 0, and 1 of {cpu_workers + 1} workers at .* declare a GPU"
    with pytest.raises(UserError, match=refusal):
        asking(Execution(runner="dask", address="tcp://127.0.0.1:1"))


def test_workers_of_refuses_a_scheduler_that_does_not_answer(prefect_api, monkeypatch):
    monkeypatch.setattr("flows.workers.ANSWER_LIMIT_S", 1.0)
    (port,) = free_ports(1)
    with pytest.raises(UserError, match=r"no Dask scheduler answers there"):
        asking(Execution(runner="dask", address=f"tcp://127.0.0.1:{port}"))


def test_workers_of_refuses_a_scheduler_without_workers(prefect_api):
    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address=None, protocol="tcp", host="127.0.0.1"
        ) as empty,
        pytest.raises(UserError, match=r"a scheduler without workers\. Fix: start some"),
    ):
        asking(Execution(runner="dask", address=empty.scheduler_address))


def test_cluster_spec_has_the_number_of_workers_and_a_name_of_its_own():
    execution = Execution(
        runner="dask", cluster=str(KUBERNETES / "dask-cluster.yaml"), workers=5, gpus_per_worker=1
    )
    one, two = cluster_spec(execution), cluster_spec(execution)
    assert one["spec"]["worker"]["replicas"] == 5
    names = {spec["metadata"]["name"] for spec in (one, two)}
    # With equal names, the end of one flow would delete the cluster of the other.
    assert len(names) == 2
    selector = one["spec"]["scheduler"]["service"]["selector"]
    assert selector["dask.org/cluster-name"] == one["metadata"]["name"]
    runner = runner_of(execution)
    assert runner.resolved_cluster_class.__name__ == "KubeCluster"
    assert (
        runner.cluster_kwargs.keys()
        <= inspect.signature(runner.resolved_cluster_class.__init__).parameters.keys()
    )


def test_cluster_spec_reads_file_modes_and_dates_as_kubectl_does(tmp_path):
    path = tmp_path / "cluster.yaml"
    lines = "modes: [0400, 0644, 0, 10, 08]\ndates: [2026-01-02, 2026-13-45]\nflags: [yes, off]\n"
    path.write_text((KUBERNETES / "dask-cluster.yaml").read_text() + f"\n{lines}a: 1e3\n")
    spec = cluster_spec(Execution(runner="dask", cluster=str(path)))
    # 4 x 64, and 6 x 64 + 4 x 8 + 4; 08 is no number in base 8.
    assert spec["modes"] == [256, 420, 0, 10, "08"]
    assert spec["dates"] == ["2026-01-02", "2026-13-45"]
    assert spec["flags"] == [True, False]
    assert spec["a"] == 1000


@pytest.mark.parametrize("content", [None, "kind: Pod", "- 1", "kind: DaskCluster"])
def test_cluster_spec_refuses_a_file_that_describes_no_cluster(tmp_path, content):
    path = tmp_path / "cluster.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"execution.cluster is .*cluster.yaml"):
        cluster_spec(Execution(runner="dask", cluster=str(path)))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a: [", r", line \d+: this is not valid YAML"),
        ("spec: {worker: {}}", r", line \d+: key 'spec' is given twice \(first on line \d+\)"),
        ("made: 1:30", r", line \d+: YAML does not read '1:30' as a decimal number"),
        ("#" * (5 << 20), r": \d+ bytes are too many for a resource of Kubernetes\."),
    ],
)
def test_cluster_spec_refuses_what_a_study_file_may_not_have_either(tmp_path, line, problem):
    path = tmp_path / "cluster.yaml"
    path.write_text((KUBERNETES / "dask-cluster.yaml").read_text() + f"\n{line}\n")
    with pytest.raises(UserError, match=rf"^execution\.cluster: .*cluster\.yaml{problem}.*Fix: "):
        cluster_spec(Execution(runner="dask", cluster=str(path)))
