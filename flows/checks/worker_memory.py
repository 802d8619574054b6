"""Computes the memory limit of a Dask worker, and whether this machine has enough memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldmprobe_core.pipeline.planning.plan import StudyPlan

_BASE = 2 << 30
"""Bytes that a worker process needs for libraries and their buffers before it loads a model."""

_MARGIN = 2
"""Factor on the planned bytes: the plan does not count the networks' intermediate values."""


def planned_bytes(plan: StudyPlan) -> int:
    """Return the memory, in bytes, that a worker is expected to need for the planned study.

    This is the memory that the plan lists, plus the weights of the model's text encoders.
    """
    encoders = sum(
        max(sum(path.stat().st_size for path in files) for files in _variants(folder.iterdir()))
        for folder in (plan.folder.glob("text_encoder*") if plan.folder else ())
        if folder.is_dir()
    )
    return sum(plan.memory.values()) + encoders


def _variants(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Split weight files into half and full precision, because a folder may contain both."""
    files = [path for path in paths if path.suffix == ".safetensors"]
    half = [path for path in files if ".fp16." in path.name]
    return half, [path for path in files if path not in half]


def worker_memory_limit(plan: StudyPlan) -> int:
    """Return the memory limit of a local Dask worker in bytes.

    Dask restarts a worker that reaches its limit.  The limit is twice the planned bytes plus
    2 GiB, but never more than the memory of the machine.
    """
    return min(_MARGIN * planned_bytes(plan) + _BASE, machine_memory())


def machine_memory() -> int:
    """Return the memory of this machine in bytes, or of the container that this process runs in."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def memory_lines(plan: StudyPlan) -> list[str]:
    """Return text lines that give the workers' memory limit and warn if the machine has too little.

    They give the memory limit of the study's Dask workers, and a note if this machine has too
    little memory for the study.  There are none if the study runs on other machines.
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
