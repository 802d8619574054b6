"""Asynchronous copies of activations from GPU memory to host memory."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_INFINITIES = {
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
    torch.float32: (torch.int32, 0x7FFFFFFF, 0x7F800000),
}
"""Bits of each data type as an integer: the integer type, all bits but the sign, and infinity.

The bits of NaN, without the sign, are a larger integer than those of infinity.
"""

HostActivations = dict[str, tuple[np.ndarray, np.ndarray]]
"""Layer name to a pair of activations in host memory and counts of non-finite values.

The activations are float16 or float32 (sample, y, x, channel), and the counts are int32 (sample,).
"""


class HostTransfer:
    """Asynchronous copy of one step's activations from a GPU to host memory.

    The copy starts at once; `result` waits until it is complete.  Activations that are on the CPU
    already are not copied.

    Args:
        values: layer name to activations, float16 or float32 (sample, y, x, channel), all on one
            device.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        pairs = {name: (stored, _nonfinite(stored)) for name, stored in values.items()}
        self._event: torch.cuda.Event | None = None
        device = next((stored.device for stored in values.values()), torch.device("cpu"))
        if device.type == "cuda":
            stream = _copy_stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                pairs = {
                    name: (_to_pinned(stored, stream), _to_pinned(counts, stream))
                    for name, (stored, counts) in pairs.items()
                }
            self._event = stream.record_event()
        self._values = pairs

    @property
    def nbytes(self) -> int:
        """Size in bytes of all activations of this transfer."""
        return sum(stored.nbytes for stored, _ in self._values.values())

    def result(self) -> HostActivations:
        """Wait until the copy is complete, then return the activations as NumPy arrays."""
        if self._event is not None:
            self._event.synchronize()
        return {
            name: (stored.cpu().numpy(), counts.cpu().numpy())
            for name, (stored, counts) in self._values.items()
        }


@lru_cache(maxsize=8)
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the CUDA stream for copies to host memory, separate from the stream that computes."""
    return torch.cuda.Stream(device)


def _to_pinned(values: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """Start an asynchronous copy of a GPU tensor to page-locked host memory."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    # PyTorch reuses the memory of a deleted tensor at once.  `record_stream` delays the reuse until
    # the copy of `values` on `stream` is complete.
    values.record_stream(stream)
    return host


def _nonfinite(stored: Tensor) -> Tensor:
    """Count the infinite and NaN values of each sample; return int32 (sample,).

    In float16, finite values above 65,504 count too, since the conversion has made them infinite.

    Args:
        stored: float16 or float32 (sample, ...).
    """
    # Without the sign bit, the bits of floating-point values, read as integers, have the order of
    # the absolute values, and NaN follows infinity.  An integer comparison therefore finds both.
    integer, without_sign, infinity = _INFINITIES[stored.dtype]
    bits = stored.view(integer) & without_sign
    # Usually all values are finite.  On a CPU, comparing only the maximum of `bits` with infinity
    # takes a third of the time of counting by sample.  This shortcut is not used on a GPU, because
    # Python would wait for the maximum, which would delay the transfer to host memory.
    if stored.device.type == "cpu" and (not bits.numel() or bits.max() < infinity):
        return torch.zeros(len(stored), dtype=torch.int32)
    return (bits >= infinity).flatten(1).sum(1, dtype=torch.int32)
