"""Memory limit of a Dask worker, and check that a planned study fits into this machine's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from ldmprobe_core.errors import counted

if TYPE_CHECKING:
    from ldmprobe_core.pipeline.planning.plan import StudyPlan

_BASE = 2 << 30
"""Bytes added to the planned memory, for what Dask and Prefect keep in a worker process."""

_MARGIN = 2
"""Factor on the planned bytes, since probing may need more memory than the planned generation."""


def planned_memory(plan: StudyPlan, on_gpu: bool) -> dict[str, int]:
    """Return the planned memory of one process of the study's workers, in bytes.

    Threads of one process that share a GPU use the models in turn, so they count as one.

    Args:
        plan: plan of the study.
        on_gpu: whether the networks are on a GPU.

    Returns:
        ``memory`` and, with a GPU, ``GPU memory``, as `peak_memory` measures them.
    """
    from ldmprobe_core.pipeline.planning.memory import planned_bytes

    execution = plan.study.execution
    threads = execution.workers if execution.runner == "local" and not on_gpu else 1
    return planned_bytes(plan.memory, threads, on_gpu)


def worker_memory_limit(plan: StudyPlan) -> int:
    """Return the memory limit of a local Dask worker in bytes.

    Dask restarts a worker that reaches its limit.  The limit is twice the planned bytes plus
    2 GiB, but never more than the memory of the machine.
    """
    return min(_MARGIN * sum(plan.memory.values()) + _BASE, machine_memory())


def machine_memory() -> int:
    """Return the memory of this machine in bytes, or of the container that this process runs in."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def number_with_room(size: int, most: int) -> int:
    """Return how many processes of a size in bytes fit into the memory that is free, up to `most`.

    Args:
        size: bytes that each process needs.
        most: largest number that is returned.
    """
    free = psutil.virtual_memory().available
    # In a container, the memory of the whole machine does not count.
    free = min(free, machine_memory() - psutil.Process().memory_info().rss)
    return max(0, min(most, free // size))


def gpu_memory() -> int:
    """Return the memory of this machine's current GPU in bytes."""
    import torch

    return int(torch.cuda.mem_get_info()[1])


def memory_lines(plan: StudyPlan) -> list[str]:
    """Return a line with the memory limit of the study's local Dask workers, if it has any."""
    execution = plan.study.execution
    if execution.elsewhere or execution.runner != "dask":
        return []
    limit = _gb(worker_memory_limit(plan))
    workers = counted(execution.workers, "worker")
    return [f"memory limit of a Dask worker: {limit}, for each of {workers}"]


def memory_problems(plan: StudyPlan) -> tuple[str, ...]:
    """Return a message for each memory of this machine that cannot hold the planned study.

    Labeling and probing may need more, so a study that passes may still need more.  There are no
    messages if the study runs on other machines.
    """
    if plan.study.execution.elsewhere:
        return ()
    from ldmprobe_core.errors import UserError
    from ldmprobe_core.models.devices import pick_device

    try:
        device = pick_device(plan.study.execution.wanted_device).type
    except UserError:
        # The device is not on this machine, which the plan reports as missing.
        return ()
    problems = [_machine_problem(plan, device)]
    if device == "cuda" and not plan.study.model.cpu_offload:
        problems.append(_gpu_problem(plan))
    return tuple(problem for problem in problems if problem is not None)


def _machine_problem(plan: StudyPlan, device: str) -> str | None:
    """Return a message if all workers together need more memory than this machine has."""
    execution, batch = plan.study.execution, plan.largest_batch
    workers = execution.workers if execution.runner == "dask" or device == "cpu" else 1
    need, machine = _host_bytes(plan, device, workers, batch), machine_memory()
    if need <= machine:
        return None
    remedies = []
    fewer = workers - 1
    while fewer and _host_bytes(plan, device, fewer, batch) > machine:
        fewer -= 1
    if fewer > 0:
        remedies.append(f"set execution.workers to {fewer}")
    smaller = batch // 2
    while smaller and _host_bytes(plan, device, workers, smaller) > machine:
        smaller //= 2
    if smaller:
        remedies.append(f"set sampling.batch to {smaller}")
    remedies.append("name fewer capture.layers")
    return (
        f"sampling.batch: {workers} {'workers need' if workers > 1 else 'worker needs'} about "
        f"{_gb(need)} of memory, and this machine has {_gb(machine)} "
        f"({plan.study.sampling.batch}). Fix: "
        f"{', or '.join(remedies)}"
    )


def _host_bytes(plan: StudyPlan, device: str, workers: int, batch: int) -> int:
    """Return the bytes of main memory that a number of workers need together."""
    from ldmprobe_core.pipeline.planning.memory import planned_bytes

    memory = plan.worker.of_batch(batch)
    if plan.study.execution.runner == "dask":
        return workers * planned_bytes(memory, 1, device == "cuda")["memory"]
    return planned_bytes(memory, workers, device == "cuda")["memory"]


def _gpu_problem(plan: StudyPlan) -> str | None:
    """Return a message if the networks and their intermediate values exceed the GPU's memory."""
    from ldmprobe_core.pipeline.planning.memory import planned_bytes

    need, gpu = planned_bytes(plan.memory, 1, on_gpu=True)["GPU memory"], gpu_memory()
    if need <= gpu:
        return None
    study = plan.study
    remedies = ["set model.cpu_offload to true"]
    if study.model.dtype == "float32":
        remedies.append("model.dtype to float16")
    if study.controls.untrained is not None:
        which = "permuted" if study.controls.permuted_weights else "random"
        remedies.append(f"controls.{which}_weights to false")
    return (
        f"model.dtype: the networks need {_gb(need)}, and the GPU has {_gb(gpu)} "
        f"({study.model.dtype}). Fix: {', or '.join(remedies)}"
    )


def _gb(size: int) -> str:
    """Format a number of bytes in GB."""
    return f"{size / 1e9:.2f} GB"
