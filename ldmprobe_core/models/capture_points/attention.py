"""Queries, keys, values and single heads of attention layers.

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
        """See `CapturePoint.register_forward_hook`; the other channels keep their values."""

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


def attention_points(module: Any) -> dict[str, CapturePoint]:
    """List the capture points inside a module: none unless it is an attention layer of diffusers.

    Returns:
        suffix of the layer's name to capture point: ``query``, and ``key`` and ``value`` of layers
        that attend to image tokens, are the outputs of the projections; ``head0``, ``head1`` and so
        on are the channels of single heads, before the output projection mixes them.
    """
    projections = [getattr(module, f"to_{letter}", None) for letter in "qkv"]
    if not hasattr(module, "heads") or not all(isinstance(p, nn.Module) for p in projections):
        return {}
    # The keys and values of cross-attention are those of text tokens, which have no place in the
    # image.
    names = ["query"] if _is_cross(module) else ["query", "key", "value"]
    points: dict[str, CapturePoint] = {name: projection(module, name) for name in names}
    out = getattr(module, "to_out", None)
    size = module.inner_dim // module.heads
    for head in range(module.heads):
        channels = slice(head * size, (head + 1) * size)
        # A layer without an output projection, as in Flux's single blocks, returns its heads.
        points[f"head{head}"] = (
            ChannelRange(module, channels) if out is None else ChannelRange(out[0], channels, True)
        )
    return points


def projection(attention: Any, name: str) -> ChannelRange:
    """Find the query, key or value of an attention layer, in separate or in fused projections.

    Args:
        attention: attention layer of diffusers.
        name: ``query``, ``key`` or ``value``.
    """
    letter = name[0]
    fused = "qkv" if not _is_cross(attention) else "kv"
    letters = fused if attention.fused_projections and letter in fused else letter
    widths = dict.fromkeys("kv", getattr(attention, "inner_kv_dim", attention.inner_dim))
    widths["q"] = attention.inner_dim
    start = sum(widths[other] for other in letters[: letters.index(letter)])
    return ChannelRange(getattr(attention, f"to_{letters}"), slice(start, start + widths[letter]))


def _is_cross(attention: Any) -> bool:
    """Whether an attention layer takes its keys and values from text tokens alone."""
    return bool(getattr(attention, "is_cross_attention", False))
