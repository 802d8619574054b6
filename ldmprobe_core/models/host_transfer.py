"""Asynchronous copies of activations from the device to host memory."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_INFINITY_BITS = 0x7C00
"""Bits of float16's infinity; those of NaN are larger."""

HostActivations = dict[str, tuple[np.ndarray, np.ndarray]]
"""Layer to float16 (sample, y, x, channel) and int32 (sample,), counts of non-finite values."""


class HostTransfer:
    """Asynchronous copy of activations from the device to the host.

    Args:
        values: layer name to float16 (sample, y, x, channel) on the device.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        pairs = {name: (half, _nonfinite(half)) for name, half in values.items()}
        self._event: torch.cuda.Event | None = None
        device = next((half.device for half in values.values()), torch.device("cpu"))
        if device.type == "cuda":
            stream = _copy_stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                pairs = {
                    name: (_to_pinned(half, stream), _to_pinned(counts, stream))
                    for name, (half, counts) in pairs.items()
                }
            self._event = stream.record_event()
        self._values = pairs

    @property
    def nbytes(self) -> int:
        """Number of bytes of the values."""
        return sum(half.nbytes for half, _ in self._values.values())

    def result(self) -> HostActivations:
        """Wait for the copies and return them."""
        if self._event is not None:
            self._event.synchronize()
        return {
            name: (half.cpu().numpy(), counts.cpu().numpy())
            for name, (half, counts) in self._values.items()
        }


@lru_cache(maxsize=8)
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Stream of a device's copies, so that they overlap with its computation."""
    return torch.cuda.Stream(device)


def _to_pinned(values: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """Start a copy into page-locked memory on a stream; torch reuses such memory."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    values.record_stream(stream)  # torch then reuses this memory only after the copy
    return host


def _nonfinite(half: Tensor) -> Tensor:
    """Counts (sample,) int32 of non-finite values, of the model or of the cast to float16.

    The largest float16 is 65,504.
    """
    bits = half.view(torch.int16) & 0x7FFF  # without the sign; as integers they sort by magnitude
    if half.device.type == "cpu" and (not bits.numel() or bits.max() < _INFINITY_BITS):
        return torch.zeros(
            len(half), dtype=torch.int32
        )  # this takes a third of the time; on a GPU, reading the maximum would stall the stream
    return (bits >= _INFINITY_BITS).flatten(1).sum(1, dtype=torch.int32)
