"""Tests that a run stopped from outside ends within a time limit and can be resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from distributed import Client, LocalCluster
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Paused
from run_helpers import assert_same, carry_out, small_study

from infra.stack import free_ports
from ldmprobe_core.storage.lease import holder_of
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).parent / "ldmprobe"
# A stop takes effect within 3 s, and after the units in progress.  With this many samples, units
# are left by then even on a fast machine.
SAMPLES = 160
# The command may wait a minute for its units; the rest is a margin for a busy machine.
START_LIMIT_S, END_LIMIT_S = 300, 150


class Started:
    """The command ``ldmprobe run`` in a process of its own, with a given server or its own."""

    def __init__(
        self, home: Path, study: Path, run: Run, *command: str, api: str | None = None
    ) -> None:
        folder = home.parent
        self.run, self.log = run, folder / "output"
        self.before = self.complete()
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_"))
        }
        environment |= {
            "PREFECT_HOME": str(home),
            "LDMPROBE_PREFECT_PORT": str(free_ports(1)[0]),
            "XDG_STATE_HOME": str(folder / "state"),
        }
        if api is not None:
            environment["PREFECT_API_URL"] = api
        with self.log.open("w") as sink:
            self.process = subprocess.Popen(
                [*(command or (str(COMMAND),)), "run", str(study), "--store", str(folder / "runs")],
                env=environment, cwd=folder, stdout=sink, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def complete(self) -> int:
        """Units of all stages that are complete."""
        if not self.run.exists:
            return 0
        progress = self.run.progress
        return sum(int(progress.completed(k).sum()) for k in ("generated", "labeled", "probed"))

    def wait_until_at_work(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while self.complete() <= self.before:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)  # polling for its first unit, bounded by the deadline

    def wait_until_said(self, words: str) -> None:
        deadline = time.monotonic() + 60
        while words not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)  # polling for a sentence, bounded by the deadline

    def end(self) -> tuple[int, str]:
        try:
            code = self.process.wait(END_LIMIT_S)
        finally:
            self.process.kill()
        output = self.log.read_text()
        assert "Traceback" not in output, output
        assert not Path(f"{self.run.url}.lease").exists() or code == 3
        assert not self.run.location.has("summary.json")
        return code, output

    def server(self) -> psutil.Process:
        (server,) = psutil.Process(self.process.pid).children()
        return server

    def api(self) -> str:
        output = self.log.read_text()
        return output.partition("Prefect UI: ")[2].split()[0] + "/api"


@pytest.fixture
def start(tiny_model, tmp_path, prefect_home):
    study = small_study("stopped", tiny_model, SAMPLES)
    path = tmp_path / "study.yaml"
    path.write_text(study.to_json())  # JSON is YAML
    run = Run(f"{tmp_path}/runs/{study.run_name}")
    started = []

    def begin() -> Started:
        started.append(Started(prefect_home, path, run))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.process.kill()


def pause_and_resume(started: Started) -> None:
    """Pause a run in Prefect, and resume it after a time in which it must not have gone on."""
    with (
        temporary_settings({PREFECT_API_URL: started.api()}),
        get_client(sync_client=True) as client,
    ):
        (flow_run,) = [r for r in client.read_flow_runs() if r.state.name == "Running"]
        client.set_flow_run_state(flow_run.id, Paused(timeout_seconds=END_LIMIT_S))
        started.wait_until_said(f"flow run {flow_run.id} is paused in Prefect")
        deadline = time.monotonic() + END_LIMIT_S
        at_rest, counts = 0, [-1]
        while at_rest < 20:  # 5 seconds in which no unit ends
            assert time.monotonic() < deadline
            counts.append(started.complete())
            at_rest = at_rest + 1 if counts[-1] == counts[-2] else 0
            time.sleep(0.25)  # polling, bounded by the deadline
        assert not started.run.location.has("summary.json")
        assert Path(f"{started.run.url}.lease").exists()
        assert started.process.poll() is None
        client.resume_flow_run(flow_run.id)
        started.wait_until_said(f"flow run {flow_run.id} was resumed in Prefect")


@pytest.mark.timeout(1800)
def test_run_stopped_by_ctrl_c_cancellation_or_loss_of_its_server_is_resumed(
    start, tiny_model, tmp_path
):
    interrupted = start()
    interrupted.wait_until_at_work()
    interrupted.process.send_signal(signal.SIGINT)
    interrupted.wait_until_said("Stopping after the units in progress, within 60 s;")
    code, _ = interrupted.end()
    assert code == 130

    cancelled = start()
    cancelled.wait_until_at_work()
    server = cancelled.server()
    api = cancelled.api()
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        runs = sorted(client.read_flow_runs(), key=lambda run: run.created)
        assert [run.state.name for run in runs[:-1]] == ["Cancelled"]  # the interrupted one
        client.set_flow_run_state(runs[-1].id, Cancelling(), force=True)
    cancelled.wait_until_said(f"flow run {runs[-1].id} was cancelled in Prefect")
    code, _ = cancelled.end()
    assert code == 130
    assert not server.is_running()

    lost = start()
    lost.wait_until_at_work()
    api = lost.api()
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        states = [run.state.name for run in client.read_flow_runs()]
    assert sorted(states) == ["Cancelled", "Cancelled", "Running"]
    lost.server().kill()
    killed_at = time.monotonic()
    code, output = lost.end()
    assert time.monotonic() - killed_at < 60
    assert code == 3
    assert "the Prefect server at" in output

    done = start()
    done.wait_until_at_work()
    pause_and_resume(done)
    assert done.process.wait(END_LIMIT_S + START_LIMIT_S) == 0, done.log.read_text()
    study = small_study("stopped", tiny_model, SAMPLES)
    assert_same(carry_out(study, str(tmp_path / "plain")), done.run)


IMPATIENT = """
from flows import cli, worker_watch
worker_watch.LOOK_EVERY_S, worker_watch.ABSENCE_LIMIT_S = 0.5, 4.0
cli.main()
"""
"""The command with a limit of 4 s, not 120 s, without any worker."""


@pytest.fixture
def workers():
    """Start a Dask scheduler and two worker processes, which nothing restarts."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1"]
    options = ["--no-nanny", "--no-dashboard", "--host", "127.0.0.1", "--resources", "CPU=1"]
    with LocalCluster(
        n_workers=0, processes=False, dashboard_address=None, protocol="tcp", host="127.0.0.1"
    ) as cluster:
        address = cluster.scheduler_address
        processes = [
            subprocess.Popen(
                [*command, address, *options],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for _ in range(2)
        ]  # fmt: skip
        try:
            with Client(cluster, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=START_LIMIT_S)
            yield address, processes
        finally:
            for process in processes:
                process.kill()
                process.wait(60)


@pytest.mark.timeout(900)
def test_run_whose_dask_workers_are_both_killed_ends_with_one_sentence(
    workers, tiny_model, tmp_path, prefect_home
):
    address, processes = workers
    content = json.loads(small_study("workerless", tiny_model, SAMPLES).to_json())
    study = parse_study({**content, "execution": {"runner": "dask", "address": address}})
    path = tmp_path / "study.yaml"
    path.write_text(study.to_json())
    run = Run(f"{tmp_path}/runs/{study.run_name}")
    started = Started(prefect_home, path, run, sys.executable, "-c", IMPATIENT)
    try:
        started.wait_until_at_work()
        for process in processes:
            process.send_signal(signal.SIGKILL)
        code, output = started.end()
    finally:
        started.process.kill()
    assert code == 3
    assert output.count("there has been no Dask worker for 4 s. What is complete is kept.") == 1
    assert run.progress.completed("generated").sum() < SAMPLES / study.sampling.batch


@pytest.mark.timeout(1800)
def test_two_studies_on_one_dask_cluster_do_not_disturb_each_other(
    workers, tiny_model, tmp_path, prefect_api
):
    """Each has the bytes that it has alone, though one is cancelled while both are at work."""
    api, started, studies = PREFECT_API_URL.value(), {}, {}

    def start(name: str) -> Started:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        path = folder / "study.yaml"
        path.write_text(studies[name].to_json())
        run = Run(f"{folder}/runs/{studies[name].run_name}")
        started[name] = Started(folder / "prefect", path, run, api=api)
        return started[name]

    for name, samples in (("stopped", SAMPLES), ("beside", SAMPLES - 22)):
        content = json.loads(small_study(name, tiny_model, samples).to_json())
        execution = {"runner": "dask", "address": workers[0]}
        studies[name] = parse_study({**content, "execution": execution})
    try:
        stopped, beside = start("stopped"), start("beside")
        stopped.wait_until_at_work()
        beside.wait_until_at_work()
        holders = [holder_of(one.run.url) for one in (stopped, beside)]
        assert [holder.pid for holder in holders] == [stopped.process.pid, beside.process.pid]
        flow_run_id = holders[0].description.removeprefix("flow run ")
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(flow_run_id), Cancelling(), force=True)
        code, _ = stopped.end()
        assert code == 130
        start("stopped")
        for one in started.values():
            assert one.process.wait(END_LIMIT_S + START_LIMIT_S) == 0, one.log.read_text()
    finally:
        for one in started.values():
            one.process.kill()
    for name, one in started.items():
        assert_same(carry_out(studies[name], str(tmp_path / "plain")), one.run)
