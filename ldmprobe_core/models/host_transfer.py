"""Asynchronous copies of activations from the device to host memory."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

HostActivations = dict[str, tuple[np.ndarray, np.ndarray]]
"""By layer: float16 (sample, y, x, channel), and int32 counts (sample,) of what is not finite."""


class HostTransfer:
    """Asynchronous copy of activations from the device to the host.

    Args:
        values: layer name to float16 (sample, y, x, channel) on the device.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        counted = {name: (half, _nonfinite(half)) for name, half in values.items()}
        self._event: torch.cuda.Event | None = None
        device = next((half.device for half in values.values()), torch.device("cpu"))
        if device.type == "cuda":
            side = _side_stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                counted = {
                    name: (_to_pinned(half, side), _to_pinned(bad, side))
                    for name, (half, bad) in counted.items()
                }
            self._event = side.record_event()
        self._values = counted

    @property
    def nbytes(self) -> int:
        """Of the values."""
        return sum(half.nbytes for half, _ in self._values.values())

    def result(self) -> HostActivations:
        """Wait until they are there."""
        if self._event is not None:
            self._event.synchronize()
        return {
            name: (half.cpu().numpy(), bad.cpu().numpy())
            for name, (half, bad) in self._values.items()
        }


@lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that a device's copies go by, beside the one that it computes on."""
    return torch.cuda.Stream(device)


def _to_pinned(values: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """A copy in page-locked memory, begun on a stream; torch lends such memory out again."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    values.record_stream(stream)  # its memory is not given away before the copy is done
    return host


def _nonfinite(half: Tensor) -> Tensor:
    """Counts (sample,) int32 of values that are not finite: from the model, or from its cast, since
    float16 ends at 65,504."""
    bits = half.view(torch.int16) & 0x7FFF  # integers, in whose order nothing finite is above
    if half.device.type == "cpu" and (not bits.numel() or bits.max() < _INFINITE):
        return torch.zeros(len(half), dtype=torch.int32)  # a third of the time; a GPU would wait
    return (bits >= _INFINITE).flatten(1).sum(1, dtype=torch.int32)


_INFINITE = 0x7C00  # float16's bits of infinity; NaNs are above
