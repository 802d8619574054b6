"""Settings of torch and NumPy for a whole process or thread, which a labeler's code may change.

The same process samples images and fits probes, whose results depend on these settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch


def _set_default_device(device: torch.device) -> None:
    """Set the device of new tensors; without the cost of a stated one if torch would choose it."""
    torch.set_default_device(None)
    if torch.get_default_device() != device:
        torch.set_default_device(device)


def _attribute(part: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Return the functions that read and write an attribute."""
    return partial(getattr, part, name), partial(setattr, part, name)


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_default_device),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    _attribute(torch.backends.cuda.matmul, "allow_tf32"),
    _attribute(torch.backends.cudnn, "allow_tf32"),
    _attribute(torch.backends.cudnn, "benchmark"),
    _attribute(torch.backends.cudnn, "deterministic"),
    (np.geterr, lambda errors: np.seterr(**errors)),
)
"""Pairs of functions that read and write a setting, in the order in which they are restored.

The precision of matrix products comes before ``allow_tf32``, since it sets that too.
"""


@contextmanager
def restored_settings() -> Iterator[None]:
    """Context manager that restores settings which code in its block changes, on any exit."""
    before = [_value(read) for read, _ in _SETTINGS]
    with ExitStack() as stack:
        # On exit, these contexts set autocast to what it was, and their own setting is the same.
        for device in ("cpu", "cuda"):
            enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
            stack.enter_context(torch.autocast(device, dtype, enabled))
        try:
            yield
        finally:
            for (read, write), value in zip(_SETTINGS, before, strict=True):
                if value is not None and _value(read) != value:
                    write(value)


def _value(read: Callable[[], Any]) -> Any:
    """Read a setting; None if code has set it by torch's former and by its newer interface."""
    try:
        return read()
    except RuntimeError:
        return None
