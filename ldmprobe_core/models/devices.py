"""Choice of the compute device."""

from __future__ import annotations

import torch

from ldmprobe_core.errors import UserError


def pick_device(name: str) -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: the device asked for is not on this machine.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present[name]:
        raise UserError(f"execution.device is {name!r}, which this machine does not have: use auto")
    return torch.device(name)
