"""Steps of the container trial: health, UI, a study, killed services and a restarted engine."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from infra.containers.engine import Engine, TrialError

PROJECT = "ldmprobe-trial"
SCHEDULER = "tcp://dask-scheduler:8786"
_PAGE_LIMIT_S = 60.0
CPU_WORKERS = 2
GPU_WORKERS = 2
START_LIMIT_S = 1800.0
BACK_LIMIT_S = 600.0
"""Limits in seconds; on a machine with ten times as many processes as cores, the deployments alone
take more than ten minutes."""
STUDY: dict[str, Any] = {
    "name": "tabletop",
    "prompts": {"set": "tabletop", "samples": 8},
    "sampling": {"steps": 2, "guidance": 3.0, "scheduler": "ddim", "batch": 4},
    "execution": {"runner": "dask", "address": SCHEDULER},
}
LONG_STUDY = {
    **STUDY,
    "name": "stopped",
    "prompts": {"set": "tabletop", "samples": 120},
    "sampling": {**STUDY["sampling"], "batch": 2},
}
"""Study whose 60 batches take long enough to stop it before it is complete."""
SERVICES = ("postgres", "prefect-server", "seaweedfs", "dask-scheduler", "dask-worker",
            "prefect-worker")  # fmt: skip


class Trial:
    """Platform of docker-compose.yml on a Docker engine, with the checks of the trial.

    Args:
        engine: engine with the images ldmprobe and ldmprobe-gpu.
        env_file: file with the variables of docker-compose.yml.
    """

    def __init__(self, engine: Engine, env_file: Path) -> None:
        self.engine, self.env_file = engine, env_file
        self.extra_container = f"{PROJECT}-gpu-workers"

    def start(self) -> None:
        """Start all services, and wait until they are healthy and Dask has its workers."""
        self._compose("up", "-d", "--no-build", limit_s=START_LIMIT_S)
        self.wait_until_well(START_LIMIT_S, CPU_WORKERS)

    def wait_until_well(self, limit_s: float, workers: int) -> None:
        """Wait until every service runs and is healthy, and Dask has a number of workers.

        Raises:
            TrialError: that takes longer than ``limit_s`` seconds.
        """
        _wait(
            f"healthy services with {workers} Dask workers", limit_s,
            lambda: not self.unwell() and self.dask_workers() == workers,
            lambda: f"unwell: {self.unwell()}\n{self._compose('logs', '--tail', '5').stdout}",
        )  # fmt: skip

    def unwell(self) -> dict[str, str]:
        """Return the state of each service that does not run, or that is not healthy."""
        states = {}
        for name in SERVICES:
            containers = self.containers(name)
            if not containers:
                states[name] = "missing"
            for container in containers:
                form = "{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}"
                state = self.engine.docker("inspect", "-f", form, container, check=False).stdout
                if state.split() not in (["running"], ["running", "healthy"]):
                    states[name] = state.strip()
        return states

    def containers(self, service: str) -> list[str]:
        """Return the identifiers of a service's containers, also of those that have ended."""
        return self.engine.docker(
            "ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).stdout.split()  # fmt: skip

    def dask_workers(self) -> int:
        """Return the number of workers of the Dask scheduler, or -1 if that is not known."""
        answer = self._python(
            "dask-scheduler",
            f"from infra.services import workers_at as n; print(n('{SCHEDULER}'))",
        )
        last = answer.splitlines()[-1:] or [""]
        return int(last[0]) if last[0].isdecimal() else -1

    def open_ui(self) -> None:
        """Open the page of the Prefect UI and a script that the page names.

        Raises:
            TrialError: one of them is not served.
        """
        page = httpx.get(
            "http://127.0.0.1:4200/", follow_redirects=True, trust_env=False, timeout=_PAGE_LIMIT_S
        )
        if page.status_code != 200 or "<script" not in page.text:
            raise TrialError(
                f"Prefect UI: its page is not served ({page.status_code} {page.text[:200]})"
            )
        script = re.search(r'<script[^>]+src="([^"]+)"', page.text)
        if script is None:
            raise TrialError(f"Prefect UI: its page names no script ({page.text[:200]})")
        answer = httpx.get(page.url.join(script[1]), trust_env=False, timeout=_PAGE_LIMIT_S)
        if answer.status_code != 200 or "javascript" not in answer.headers.get("content-type", ""):
            raise TrialError(
                f"Prefect UI: its script {script[1]} is not served ({answer.status_code})"
            )

    def run_study(self, name: str) -> None:
        """Run a study through its deployment, and verify every chunk of its run in the bucket.

        Raises:
            TrialError: the flow run does not complete, or the run is incomplete or damaged.
        """
        parameters = json.dumps({"study": {**STUDY, "name": name}})
        words = ("exec", "-T", "prefect-worker")
        done = self._compose(
            *words, "prefect", "deployment", "run", "study/process", "--watch", "--params",
            parameters, check=False, limit_s=1200.0,
        )  # fmt: skip
        if done.returncode:
            logs = self._compose("logs", "--tail", "40", "prefect-worker").stdout
            raise TrialError(
                f"the study {name} did not complete:\n{done.stdout[-2000:]}\nWorker's log:\n{logs}"
            )
        self._verify(name)

    def stop_study(self) -> list[str]:
        """Cancel a study in Prefect, suspend and resume it, and verify its run in the bucket.

        Returns:
            a sentence for each stop.

        Raises:
            TrialError: a stop leaves units or a lease behind, or the study is not completed.
        """
        done = self._compose(
            "exec", "-T", "prefect-worker", "python", "-m", "infra.containers.stopping",
            json.dumps(LONG_STUDY), limit_s=START_LIMIT_S,
        )  # fmt: skip
        self._verify(LONG_STUDY["name"])
        return [line for line in done.stdout.splitlines() if " batches: " in line]

    def _verify(self, name: str) -> None:
        """Verify every chunk of the run of a study in the bucket."""
        listing = self._python(
            "prefect-worker",
            "import s3fs; print(*(p for p in s3fs.S3FileSystem().ls('runs') "
            f"if p.startswith('runs/{name}-') and not p.endswith('.lease')))",
        )
        address = f"s3://{listing.split()[-1]}"
        self._compose("exec", "-T", "prefect-worker", "ldmprobe", "verify", address)

    def kill(self, service: str) -> None:
        """Kill the processes of a service's first container, and wait until Docker restarts it.

        The signal goes to all processes but the first, which Linux protects.  The first is an init
        that ends with its child, or PostgreSQL's, which ends at once on SIGQUIT.

        Raises:
            TrialError: the container does not start again within a few minutes.
        """
        container = self.containers(service)[0]
        before = self._started(container)
        words = "kill -QUIT 1" if service == "postgres" else "kill -9 -1"
        self.engine.docker("exec", container, "sh", "-c", words, check=False)
        _wait(f"{service} to be started again", BACK_LIMIT_S,
              lambda: self._started(container) != before)  # fmt: skip

    def try_gpu_workers(self, image: str) -> None:
        """Run the command of the GPU service without a GPU, and kill one of its two workers.

        Raises:
            TrialError: the killed worker is not replaced.
        """
        network = f"{PROJECT}_default"
        self.engine.docker(
            "run", "-d", "--name", self.extra_container, "--network", network, "--init",
            "-e", f"LDMPROBE_GPUS={GPU_WORKERS}", image,
            "python", "-m", "infra.docker.gpu_workers", SCHEDULER,
        )  # fmt: skip
        total = CPU_WORKERS + GPU_WORKERS
        _wait("GPU-style workers", BACK_LIMIT_S, lambda: self.dask_workers() == total)
        killed = self.engine.docker(
            "exec", self.extra_container, "python", "-c",
            "import psutil; p = [p for p in psutil.process_iter() if 'GPU=1' in p.cmdline()][0]; "
            "p.kill(); print(p.pid)",
        ).stdout  # fmt: skip
        restarted = f"ended ({-9}) and is started again"
        _wait(f"a replacement of the worker {killed.strip()}", BACK_LIMIT_S,
              lambda: restarted in self._gpu_log() and self.dask_workers() == total,
              self._gpu_log)  # fmt: skip
        self.engine.docker("rm", "-f", self.extra_container)

    def remove(self) -> None:
        """Stop all services, and delete their containers, network and volumes."""
        self.engine.docker("rm", "-f", self.extra_container, check=False)
        self._compose("down", "-v", "--remove-orphans", check=False)

    def _gpu_log(self) -> str:
        """Return the log of the container of GPU workers."""
        return self.engine.docker("logs", self.extra_container, check=False).stdout

    def _started(self, container: str) -> str:
        """Return the time at which a container was last started."""
        form = "{{.State.StartedAt}}"
        return self.engine.docker("inspect", "-f", form, container).stdout

    def _python(self, service: str, code: str) -> str:
        """Run Python code in a service's container, and return its output."""
        words = ("exec", "-T", service, "python", "-c", code)
        return self._compose(*words, check=False).stdout

    def _compose(
        self, *words: str, check: bool = True, limit_s: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        return self.engine.compose(
            *words, env_file=self.env_file, project=PROJECT, check=check, limit_s=limit_s
        )


def _wait(
    aim: str, limit_s: float, reached: Callable[[], bool], details: Callable[[], str] = str
) -> None:
    """Wait until ``reached`` returns True; raise `TrialError` with details after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while not reached():
        if time.monotonic() > deadline:
            raise TrialError(f"gave up after {limit_s:.0f} s of waiting for {aim}\n{details()}")
        # Nothing announces the change that is waited for, so look again until the deadline.
        time.sleep(2)
