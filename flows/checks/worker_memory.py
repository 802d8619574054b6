"""Memory of a study's workers: the limit of a Dask worker, and whether the machine has enough."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldmprobe_core.pipeline.planning.plan import StudyPlan

_BASE = 2 << 30
"""Bytes of a worker process before it loads a model: libraries and their buffers."""

_MARGIN = 2
"""Factor for values that the plan does not count, such as the networks' intermediate ones."""


def planned_bytes(plan: StudyPlan) -> int:
    """Bytes that a worker is expected to need: the plan's, and the text encoders' weights."""
    encoders = sum(
        max(sum(path.stat().st_size for path in files) for files in _variants(folder.iterdir()))
        for folder in plan.folder.glob("text_encoder*")
        if folder.is_dir()
    )
    return sum(plan.memory.values()) + encoders


def _variants(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Weight files by precision: a folder may hold both."""
    files = [path for path in paths if path.suffix == ".safetensors"]
    half = [path for path in files if ".fp16." in path.name]
    return half, [path for path in files if path not in half]


def worker_memory_limit(plan: StudyPlan) -> int:
    """Memory limit of a local Dask worker in bytes, at which Dask ends and restarts it.

    Twice the planned bytes and 2 GiB, and at most the memory of the machine.
    """
    return min(_MARGIN * planned_bytes(plan) + _BASE, machine_memory())


def machine_memory() -> int:
    """Memory of this machine, or of its container, in bytes."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def memory_lines(plan: StudyPlan) -> list[str]:
    """The memory limit of a study's Dask workers, and a note if this machine has too little.

    Empty if the study runs on other machines.
    """
    execution = plan.study.execution
    if execution.elsewhere:
        return []
    need, machine = planned_bytes(plan), machine_memory()
    lines = []
    if execution.runner == "dask":
        limit = worker_memory_limit(plan)
        lines.append(
            f"memory limit of a Dask worker: {_gb(limit)}, for each of {execution.workers} workers"
        )
        need *= execution.workers
    if need > machine:
        workers = "execution.workers, " if execution.runner == "dask" else ""
        lines.append(
            f"note: the study needs about {_gb(need)} of memory and this machine has "
            f"{_gb(machine)}. Fix: lower {workers}sampling.batch, or name fewer capture.layers"
        )
    return lines


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
