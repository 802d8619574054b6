"""Memory limit of a Dask worker, and check that a planned study fits into this machine's memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from math import prod
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
    return sum(plan.memory.values()) + _encoder_bytes(plan)


def _encoder_bytes(plan: StudyPlan) -> int:
    """Return the bytes of the text encoders' weights in ``model.dtype``; 0 if they are missing."""
    from ldmprobe_core.errors import UserError
    from ldmprobe_core.models.files.checkpoint import read_component

    total = 0
    for folder in plan.folder.glob("text_encoder*") if plan.folder else ():
        with suppress(UserError):
            total += sum(prod(tensor.shape) for tensor in read_component(folder).values())
    return total * (4 if plan.study.model.dtype == "float32" else 2)


def _network_bytes(plan: StudyPlan) -> int:
    """Return the bytes of all networks' weights."""
    return _encoder_bytes(plan) + sum(plan.memory.get(use, 0) for use in ("denoiser", "vae"))


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
    return [f"memory limit of a Dask worker: {limit}, for each of {execution.workers} workers"]


def memory_problems(plan: StudyPlan) -> tuple[str, ...]:
    """Return a message for each memory of this machine that cannot hold the planned study.

    The plan does not count the networks' intermediate values, so a study that passes may still need
    more.  There are no messages if the study runs on other machines.
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
    execution, batch = plan.study.execution, plan.study.sampling.batch
    # Threads of one process share the models on a GPU, and use them in turn, so they need the
    # memory of one worker.
    workers = execution.workers if execution.runner == "dask" or device == "cpu" else 1
    need, machine = _host_bytes(plan, device), machine_memory()
    if need * workers <= machine:
        return None
    remedies = []
    if workers > 1 and need <= machine:
        remedies.append(f"set execution.workers to {machine // need}")
    smaller = batch // 2
    while smaller and _host_bytes(_with_batch(plan, smaller), device) * workers > machine:
        smaller //= 2
    if smaller:
        remedies.append(f"set sampling.batch to {smaller}")
    remedies.append("name fewer capture.layers")
    return (
        f"sampling.batch: {workers} {'workers need' if workers > 1 else 'worker needs'} about "
        f"{_gb(need * workers)} of memory, and this machine has {_gb(machine)} ({batch}). Fix: "
        f"{', or '.join(remedies)}"
    )


def _host_bytes(plan: StudyPlan, device: str) -> int:
    """Return the bytes of main memory that a worker needs; with a GPU, networks need none of it."""
    return planned_bytes(plan) - (_network_bytes(plan) if device == "cuda" else 0)


def _with_batch(plan: StudyPlan, batch: int) -> StudyPlan:
    """Return the plan of the study with another ``sampling.batch``."""
    from ldmprobe_core.models.sources.lookup import source_of
    from ldmprobe_core.pipeline.planning.sizes import sum_bytes, worker_bytes

    source, steps = source_of(plan.study.model), len(plan.steps)
    sampling = plan.study.sampling.model_copy(update={"batch": batch})
    study = plan.study.model_copy(update={"sampling": sampling})
    sums = sum_bytes(study, plan.shapes, steps)
    memory = worker_bytes(study, source.architecture, *source.networks(), plan.shapes, steps, sums)
    return replace(plan, study=study, memory=memory)


def _gpu_problem(plan: StudyPlan) -> str | None:
    """Return a message if the networks' weights, all on the GPU at once, exceed its memory."""
    weights, gpu = _network_bytes(plan), gpu_memory()
    if weights <= gpu:
        return None
    study = plan.study
    remedies = ["set model.cpu_offload to true"]
    if study.model.dtype == "float32":
        remedies.append("model.dtype to float16")
    if study.controls.untrained is not None:
        which = "permuted" if study.controls.permuted_weights else "random"
        remedies.append(f"controls.{which}_weights to false")
    return (
        f"model.dtype: the networks' weights need {_gb(weights)}, and the GPU has {_gb(gpu)} "
        f"({study.model.dtype}). Fix: {', or '.join(remedies)}"
    )


def _gb(size: int) -> str:
    """Format a number of bytes in GB."""
    return f"{size / 1e9:.2f} GB"
