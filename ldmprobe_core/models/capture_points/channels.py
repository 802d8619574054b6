"""Capture points: places in a network that accept forward hooks as modules do.

A capture point has the method `register_forward_hook` of a module.  Its hooks therefore receive,
and may replace, the values at that point as hooks on a module do the module's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


class CapturePoint(Protocol):
    """Place in a network that accepts forward hooks, such as the queries of an attention layer."""

    def register_forward_hook(self, hook: Callable[[nn.Module, Any, Any], Any]) -> Any:
        """Register a hook on the values at this point.

        Args:
            hook: function of a module, its inputs and the values, image tokens (n, token, channel).
                It returns new values, or None to leave them as they are.

        Returns:
            a handle, whose method ``remove`` removes the hook.
        """


@dataclass(frozen=True)
class ChannelRange:
    """Capture point that is a range of channels of a module's output, or of its input.

    Attributes:
        module: module whose output or first input is (n, token, channel).
        channels: range of channels.
        of_input: whether the channels are those of the input.
    """

    module: nn.Module
    channels: slice
    of_input: bool = False

    def register_forward_hook(self, hook: Callable[[nn.Module, Any, Any], Any]) -> Any:
        """Register a hook on the values of these channels; other channels stay unchanged."""

        def on_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            new = hook(module, inputs, output[..., self.channels])
            if new is None:
                return None
            edited = output.clone()
            edited[..., self.channels] = new
            return edited

        def on_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            edited = on_output(module, inputs, inputs[0])
            return None if edited is None else (edited, *inputs[1:])

        if self.of_input:
            return self.module.register_forward_pre_hook(on_input)
        return self.module.register_forward_hook(on_output)
