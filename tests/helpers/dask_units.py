"""Units of work for tests of Dask workers, importable by worker processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from prefect import task


@task
def unit(number: int) -> int:
    return number


@task
def deadly_unit(folder: str) -> None:
    """End its own worker process, as the kernel does when memory is short."""
    with (Path(folder) / "deaths").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def process_id() -> int:
    return os.getpid()
