"""Run one Dask worker for each GPU of a container: ``python -m infra.docker.gpu_workers``.

The argument is the address of the Dask scheduler; LDMPROBE_GPUS is the number of GPUs.  A worker
that ends is started again, also with exit code 0, and the other workers continue.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

_PAUSE_S = 2.0
"""Seconds between the end of a worker and its restart."""
_STOP_LIMIT_S = 8.0
"""Seconds for the workers to end before they are killed; Docker kills the container after 10 s."""


def main() -> None:
    """Run one Dask worker for each GPU until SIGTERM or SIGINT arrives."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    keep_running(
        [worker(sys.argv[1]) for _ in range(int(os.environ["LDMPROBE_GPUS"]))],
        [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(int(os.environ["LDMPROBE_GPUS"]))],
    )


def worker(scheduler: str) -> list[str]:
    """Return the command of a Dask worker with one GPU.

    Args:
        scheduler: address of the Dask scheduler.
    """
    return [
        sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--nthreads", "1",
        "--resources", "GPU=1", "--dashboard-address", "127.0.0.1:0",
        "--local-directory", "/tmp/dask",
    ]  # fmt: skip


def keep_running(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]
) -> None:
    """Run several commands at the same time, and restart each one that ends.

    This returns only by an exception, such as the SystemExit of a signal handler.  The processes
    end with it.

    Args:
        commands: program and arguments of each process.
        environments: for each command, environment variables besides those of this process.
    """

    def start(i: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(commands[i], env=os.environ | dict(environments[i]))

    processes: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(len(commands)):
            processes.append(start(i))
        while True:
            time.sleep(_PAUSE_S)
            for i, process in enumerate(processes):
                if process.poll() is not None:
                    print(f"worker {i} ended ({process.returncode}) and is started again")
                    processes[i] = start(i)
    finally:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _STOP_LIMIT_S
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Exit on a signal, so that the workers are stopped."""
    raise SystemExit(0)


if __name__ == "__main__":
    main()
