"""Choice of the device (CUDA, MPS or CPU) that runs the models."""

from __future__ import annotations

import resource
import sys

import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.schema import Study


def pick_device(name: str) -> torch.device:
    """Convert a device name to a torch device, after a check that this machine has it.

    It also turns off TF32, which makes float32 products less exact.  Only some GPUs have it, so
    results would depend on the type of GPU.  Every process that loads a model or a labeler picks
    its device first.

    Args:
        name: ``cuda``, ``mps``, ``cpu``, or ``auto`` for the first of these that is available.

    Raises:
        UserError: this machine does not have the device.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, is_present in present.items() if is_present)
    if not present[name]:
        raise UserError(
            f"execution.device is {name!r}, but this machine has no such device. Fix: set "
            "execution.device to auto"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def check_device(study: Study) -> None:
    """Check that this machine has the study's device, and that ``model.cpu_offload`` suits it.

    Raises:
        UserError: this machine does not have the device, or ``model.cpu_offload`` is true although
            the device is the CPU.
    """
    device = pick_device(study.execution.wanted_device)
    if study.model.cpu_offload and device.type == "cpu":
        raise UserError(
            "model.cpu_offload is true, but the device is already the CPU. Fix: set "
            "model.cpu_offload to false"
        )


def peak_memory() -> dict[str, int]:
    """Return the largest memory in bytes that this process has used so far.

    Returns:
        ``memory``, the resident set, with libraries; and ``GPU memory``, the tensors on the current
        GPU, if this process uses one.
    """
    # `ru_maxrss` is in kibibytes on Linux, and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_initialized():
        peaks["GPU memory"] = torch.cuda.max_memory_allocated()
    return peaks
