"""Capture points inside attention layers: queries, keys, values, single heads, attention maps."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
)
from torch import nn

from ldmprobe_core.models.capture_points.attention_maps import AttentionMaps
from ldmprobe_core.models.capture_points.channels import CapturePoint, ChannelRange
from ldmprobe_core.study.layers import TOKENS, WORDS

_SOFTMAX = (AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0, SlicedAttnProcessor)
"""Attention processors of diffusers whose attention is softmax(queries keys'), unmodified."""


def attention_points(module: Any) -> dict[str, CapturePoint]:
    """List the capture points inside an attention layer of diffusers; empty for other modules.

    Returns:
        suffix of the layer's name to capture point: ``query``, and ``key`` and ``value`` of layers
        that attend to image tokens, are the outputs of the projections; ``head0``, ``head1`` and so
        on are the channels of single heads, before the output projection mixes them; ``words`` of
        cross-attention layers are the probabilities of each text token, and ``tokens`` of
        self-attention layers are those of each image token.
    """
    projections = [getattr(module, f"to_{letter}", None) for letter in "qkv"]
    if not hasattr(module, "heads") or not all(isinstance(p, nn.Module) for p in projections):
        return {}
    # The keys and values of cross-attention belong to text tokens, which have no position in the
    # image, so only its queries are capture points.
    names = ["query"] if _is_cross(module) else ["query", "key", "value"]
    points: dict[str, CapturePoint] = {name: projection(module, name) for name in names}
    out = getattr(module, "to_out", None)
    size = module.inner_dim // module.heads
    for head in range(module.heads):
        channels = slice(head * size, (head + 1) * size)
        # The output projection mixes the heads, so a head is a range of channels of its input.  A
        # layer without an output projection, as in Flux's single blocks, returns the heads unmixed,
        # so a head is a range of channels of the layer's output.
        points[f"head{head}"] = (
            ChannelRange(module, channels) if out is None else ChannelRange(out[0], channels, True)
        )
    if _compares_projections(module):
        key = projection(module, "key")
        points[WORDS if _is_cross(module) else TOKENS] = AttentionMaps(module, points["query"], key)
    return points


def projection(attention: Any, name: str) -> ChannelRange:
    """Return a capture point for the queries, keys or values of an attention layer.

    Its projections may be separate or fused.

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


def _compares_projections(attention: Any) -> bool:
    """Return whether a layer's attention is the softmax of its projected queries and keys.

    Maps that are computed from the projections of another layer would not be its own: some layers
    normalise or rotate queries and keys, joint attention adds those of text tokens, and linear
    attention has no softmax.
    """
    plain = _is_cross(attention) or isinstance(getattr(attention, "processor", None), _SOFTMAX)
    return plain and attention.norm_q is None and attention.norm_k is None


def _is_cross(attention: Any) -> bool:
    """Return whether an attention layer takes its keys and values from text tokens alone."""
    return bool(getattr(attention, "is_cross_attention", False))
