"""Choice of the compute device."""

from __future__ import annotations

import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.schema import Study


def pick_device(name: str) -> torch.device:
    """Choose the device of a name; ``auto`` takes CUDA, then MPS, then the CPU.

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
            f"execution.device is {name!r}, which this machine does not have. Fix: set it to auto"
        )
    return torch.device(name)


def check_device(study: Study) -> None:
    """Check that a study's device is on this machine, and that its model settings suit it.

    Raises:
        UserError: this machine does not have the device, or offloading is on without a GPU.
    """
    device = pick_device(study.execution.wanted_device)
    if study.model.cpu_offload and device.type == "cpu":
        raise UserError(
            "model.cpu_offload is true, but the device is already the CPU. Fix: set "
            "model.cpu_offload to false"
        )
