"""Trace of the tensors that a call of networks allocates, taken on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldmprobe_core.models.allocator import LARGEST_KEPT


@dataclass(frozen=True)
class AllocationTrace:
    """Sizes of the tensors that a call allocates and frees, in order.

    Attributes:
        changes: bytes of each tensor, int64 (change,): positive where it is allocated, negative
            where it is freed.
    """

    changes: np.ndarray

    def peak(self, factor: float = 1.0) -> int:
        """Return the peak of the bytes that are allocated together, with all sizes times a factor.

        Args:
            factor: for example the number of samples, if the trace is of one sample.
        """
        return _highest(self.changes * factor)

    def kept(self, factor: float = 1.0) -> int:
        """Return the part of the peak that the allocator keeps afterwards (`keep_freed_memory`).

        These are tensors below 32 MiB; larger ones are returned to the kernel.

        Args:
            factor: as for `peak`.
        """
        sizes = self.changes * factor
        return _highest(sizes[np.abs(sizes) < LARGEST_KEPT])


def trace_call(call: Callable[[], Any], *networks: nn.Module) -> AllocationTrace:
    """Record the tensors that a call on the meta device allocates and frees.

    PyTorch's attention function is counted without its matrix of attention scores, which its fast
    implementations never hold as a whole.  A convolution is counted with a second copy of its
    input, since oneDNN on CPUs works on a copy in another order of memory.

    Args:
        call: function that calls networks without gradients, with tensors on the meta device.
        networks: networks on the meta device, whose weights are not counted.
    """
    live = _LiveTensors(tensor for n in networks for tensor in (*n.parameters(), *n.buffers()))
    with torch.device("meta"), torch.no_grad(), live, _FusedAttention():
        call()
    return AllocationTrace(np.array(live.changes, np.int64))


def _highest(sizes: np.ndarray) -> int:
    """Return the highest running sum of signed sizes; 0 if it never rises."""
    return int(np.cumsum(sizes).max(initial=0))


class _LiveTensors(TorchDispatchMode):
    """PyTorch dispatch mode that records when tensors are allocated and freed.

    Args:
        known: tensors that are not counted, such as weights.

    Attributes:
        changes: bytes of each tensor, in order; negative where it is freed.
    """

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.changes: list[int] = []
        self._storages = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        if func is torch.ops.aten.convolution.default:
            copied = args[0].numel() * args[0].element_size()
            self.changes += [copied, -copied]
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a tensor's storage once, until it is freed; a view shares its base's storage."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            self.changes.append(size)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.changes.append(-size)


class _FusedAttention(TorchFunctionMode):
    """PyTorch function mode in which the attention function allocates only its output."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, _, value = (*args, *(kwargs or {}).values())[:3]
        return query.new_empty(*query.shape[:-1], value.shape[-1])
