"""Load of the Prefect server in a study of many task runs, with SQLite or PostgreSQL.

    python -m benchmarks.prefect_load [task runs] [--database sqlite|postgresql]

A flow submits units of work as the study flow does: through `submit_units`, with the tasks' own
options, on two threads.  The units themselves do nothing, so the server receives events and log
lines as fast as one process can send them: a worst case.  Meanwhile, a thread sends the requests of
the pages that Prefect's UI shows of a flow run, one after another, and measures the answers.  The
benchmark prints rates, the server's CPU time and memory, and the response times.  With
PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE=1 in the environment, the server records task
runs one by one, as it does by default; with
PREFECT_SERVER_EVENTS_MESSAGING_BROKER=prefect.server.utilities.messaging.memory, it drops events
that its queues cannot hold.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect import flow, runtime
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.interruption import started_servers
from flows.run_flow import run_flow
from flows.server import start_server
from flows.workers import submit_units, workers_of
from infra.services import HOST, postgres_program, unprivileged_user
from infra.stack import free_ports
from ldmprobe_core.pipeline.units import UNITS, UnitOperations
from ldmprobe_core.storage.units import UnitKind
from ldmprobe_core.study.sections import Execution
from tasks.progress import follow
from tasks.references import RunRef, UnitRef
from tasks.study import probe

LOOK_EVERY_S = 5.0
RECORD_LIMIT_S = 60.0
"""Seconds without a new record after which the missing ones count as lost."""

IDLE = UnitOperations(
    kind=UnitKind(verb="idle", progress="idle", dims=("unit",), groups=(), description="none"),
    list_units=lambda _run: [],
    carry_out=lambda _url, _number: {"units": 1, "seconds": 0.0},
    is_done=lambda _run, _number: False,
)
"""Units that do nothing, which are registered only while the flow needs them."""


@flow(name="load")
def many_units(count: int) -> str:
    """Carry out units that do nothing, and return the id of the flow run."""
    run = RunRef(url="none", identity="none")
    units = [UnitRef(run=run, verb="idle", index=(i,), title=f"unit {i:06d}") for i in range(count)]
    UNITS[IDLE.kind.verb] = IDLE
    with workers_of(Execution(workers=2)):
        follow("probe", submit_units(probe, units))
    del UNITS[IDLE.kind.verb]
    return str(runtime.flow_run.id)


@dataclass
class Load:
    """Samples of the server's memory and response times, which a thread collects.

    Attributes:
        answers: seconds of each answer, by request.
        failures: number of requests that failed or took longer than `limit_s`, by request.
        memory: bytes of physical memory of the server, and of the database if it is a process of
            its own; each page that processes share is divided among them.
    """

    url: str
    processes: dict[str, int]
    answers: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    memory: dict[str, list[int]] = field(default_factory=dict)
    limit_s: float = 30.0

    def look(self, client: httpx.Client, flow_run_id: str | None) -> None:
        """Measure the memory once, and the answer to each request once."""
        for name, pid in self.processes.items():
            self.memory.setdefault(name, []).append(memory_of(pid))
        for name, (path, content) in requests_of(flow_run_id).items():
            begun = time.monotonic()
            try:
                if content is None:
                    client.get(f"{self.url}{path}").raise_for_status()
                else:
                    client.post(f"{self.url}{path}", json=content).raise_for_status()
                self.answers.setdefault(name, []).append(time.monotonic() - begun)
            except httpx.HTTPError:
                self.failures[name] = self.failures.get(name, 0) + 1

    def keep_looking(self, over: threading.Event) -> None:
        """Measure until the event is set; the flow run is the newest on the server."""
        with httpx.Client(timeout=self.limit_s) as client:
            while not over.wait(LOOK_EVERY_S):
                try:
                    runs = client.post(f"{self.url}/flow_runs/filter", json={"limit": 1}).json()
                except httpx.HTTPError:
                    self.failures["flow runs"] = self.failures.get("flow runs", 0) + 1
                    continue
                self.look(client, runs[0]["id"] if runs else None)


def requests_of(flow_run_id: str | None) -> dict[str, tuple[str, dict[str, Any] | None]]:
    """Return path and content of the requests behind the pages of the UI, by a name for each."""
    found: dict[str, tuple[str, dict[str, Any] | None]] = {
        "list of flow runs": ("/flow_runs/filter", {"limit": 10, "sort": "START_TIME_DESC"}),
    }
    if flow_run_id is None:
        return found
    one = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    newest = {"limit": 20, "sort": "EXPECTED_START_TIME_DESC"}
    logs = {"flow_run_id": {"any_": [flow_run_id]}}
    return found | {
        "a flow run": (f"/flow_runs/{flow_run_id}", None),
        "its first task runs": ("/task_runs/filter", one | newest),
        "number of its task runs": ("/task_runs/count", one),
        "its first log lines": ("/logs/filter", {"logs": logs, "limit": 200}),
        "its graph": (f"/flow_runs/{flow_run_id}/graph-v2", None),
    }


def memory_of(pid: int) -> int:
    """Return the bytes of physical memory of a process and its children."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


def seconds_of(pid: int) -> float:
    """Return the CPU seconds that a process and its children have used."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(time for process in tree for time in process.cpu_times()[:4])


@contextmanager
def postgresql(folder: Path) -> Iterator[tuple[str, int]]:
    """Run PostgreSQL with a new database, and yield its URL for Prefect and its process id."""
    user, (port,), data = unprivileged_user(), free_ports(1), folder / "postgresql"
    folder.chmod(0o755)  # PostgreSQL runs as another user than root
    data.mkdir()
    if user is not None:
        shutil.chown(data, user)
    address = ("-h", HOST, "-p", str(port))
    subprocess.run(
        [postgres_program("initdb"), "-D", str(data), "-U", "prefect", "--auth=trust"],
        user=user, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    server = subprocess.Popen(
        [postgres_program("postgres"), "-D", str(data), *address, "-c",
         "unix_socket_directories="],
        user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ready = [postgres_program("pg_isready"), "-q", *address]
        while subprocess.run(ready, check=False).returncode:
            assert server.poll() is None, "PostgreSQL has ended"
            time.sleep(0.2)
        subprocess.run(
            [postgres_program("createdb"), *address, "-U", "prefect", "prefect"], check=True
        )
        yield f"postgresql+asyncpg://prefect@{HOST}:{port}/prefect", server.pid
    finally:
        server.terminate()
        server.wait(60)


def recorded(url: str, flow_run_id: str) -> int:
    """Return the number of a flow run's task runs that are completed in the server's records."""
    which = {
        "flow_runs": {"id": {"any_": [flow_run_id]}},
        "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
    }
    return int(httpx.post(f"{url}/task_runs/count", json=which, timeout=120).json())


def measure(count: int, database: str, folder: Path) -> None:
    """Start a server, carry out the units, and print what was measured."""
    os.environ["PREFECT_HOME"] = f"{folder}/prefect"
    with (
        postgresql(folder) if database == "postgresql" else _nothing() as (address, pid),
        temporary_settings({PREFECT_HOME: folder / "prefect", PREFECT_API_URL: None}),
    ):
        if address:
            os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = address
        with start_server() as url, temporary_settings({PREFECT_API_URL: url}):
            processes = {"server": started_servers[-1].process.pid}
            if pid is not None:
                processes["database"] = pid
            load = Load(url, processes)
            _carry_out(count, load)


@contextmanager
def _nothing() -> Iterator[tuple[None, None]]:
    """Yield what stands for no database server."""
    yield None, None


def _carry_out(count: int, load: Load) -> None:
    """Carry out the flow while a thread measures, and print the figures."""
    before = {name: seconds_of(pid) for name, pid in load.processes.items()}
    idle = {name: memory_of(pid) for name, pid in load.processes.items()}
    over = threading.Event()
    watch = threading.Thread(target=load.keep_looking, args=(over,), daemon=True)
    watch.start()
    begun, own = time.monotonic(), time.process_time()
    flow_run_id = run_flow(many_units, count=count)
    ended, own = time.monotonic() - begun, time.process_time() - own
    at_end = complete = recorded(load.url, flow_run_id)
    settled = time.monotonic()
    while complete < count and time.monotonic() - settled < RECORD_LIMIT_S:
        time.sleep(LOOK_EVERY_S)
        before_look, complete = complete, recorded(load.url, flow_run_id)
        if complete > before_look:
            settled = time.monotonic()
    settled -= begun
    over.set()
    watch.join()
    print(f"{count} task runs: flow {ended:.0f} s ({own:.0f} CPU s of its process)")
    print(f"completed on the server when the command would end: {at_end}")
    print(
        f"completed on the server after {settled:.0f} s: {complete}, {count / settled:.0f} a second"
    )
    dropped = started_servers[-1].log.read_text().count("dropping message")
    print(f"messages that the server dropped, for any of its services: {dropped}")
    for name, pid in load.processes.items():
        print(f"{name}: {seconds_of(pid) - before[name]:.0f} CPU s, "
              f"{1e3 * (seconds_of(pid) - before[name]) / count:.1f} ms a task run; memory "
              f"{idle[name] / 1e6:.0f} MB before, {max(load.memory[name]) / 1e6:.0f} MB at most, "
              f"{memory_of(pid) / 1e6:.0f} MB after")  # fmt: skip
    afterwards = Load(load.url, load.processes)
    with httpx.Client(timeout=afterwards.limit_s) as client:
        for _ in range(5):
            afterwards.look(client, flow_run_id)
    print("seconds of an answer: request, median and greatest meanwhile, failed; median afterwards")
    for name in requests_of(flow_run_id):
        times = load.answers.get(name) or [float("nan")]
        later = afterwards.answers.get(name) or [float("nan")]
        print(f"  {name:24} {statistics.median(times):6.2f} {max(times):6.2f} of {len(times)}, "
              f"{load.failures.get(name, 0)} failed; {statistics.median(later):.2f}")  # fmt: skip


def main() -> None:
    """Measure with the number of task runs and the database of the command line."""
    options = argparse.ArgumentParser()
    options.add_argument("count", type=int, nargs="?", default=10_000)
    options.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(chosen.count, chosen.database, Path(folder))


if __name__ == "__main__":
    main()
