"""Attention maps: attention probabilities from image tokens to text tokens or image tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ldmprobe_core.models.capture_points.channels import CapturePoint


@dataclass(frozen=True)
class AttentionMaps:
    """Capture point of the attention probabilities of an attention layer.

    The pipeline's fused attention returns no probabilities.  They are computed a second time from
    the queries and keys of its own call, so that the pipeline's result keeps its bits.

    Attributes:
        attention: attention layer of diffusers, without normalisation of queries and keys.
        query, key: capture points of its queries and keys.
    """

    attention: Any
    query: CapturePoint
    key: CapturePoint

    def register_forward_hook(self, hook: Callable[[nn.Module, Any, Any], Any]) -> Any:
        """Register a hook on the head-averaged attention maps (n, image token, attended token).

        The attended tokens are text tokens in cross-attention, else image tokens, row by row.  The
        values that the hook returns are ignored, because the pipeline does not use the maps.
        """
        projected: dict[str, Tensor] = {}

        def compute(module: nn.Module, inputs: Any, kwargs: dict[str, Any], _output: Any) -> None:
            query, key = projected.pop("query"), projected.pop("key")
            hook(module, inputs, self._mean_probabilities(query, key, kwargs.get("attention_mask")))

        handles = _Handles()
        for name, point in (("query", self.query), ("key", self.key)):
            record = _recorder(projected, name)
            handles.callback(point.register_forward_hook(record).remove)
        handles.callback(self.attention.register_forward_hook(compute, with_kwargs=True).remove)
        return handles

    def _mean_probabilities(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Average the attention probabilities of a batch over the heads.

        Args:
            query, key: (n, token, channel), as projected.
            mask: attention mask of the layer's call.
        """
        heads = self.attention.heads
        if mask is not None:
            mask = self.attention.prepare_attention_mask(mask, key.shape[1], len(key)).float()
            mask = mask.unflatten(0, (len(key), heads))
        total: Any = 0
        # Process heads one by one to save memory: the maps of all heads together may be many times
        # larger than their mean.  Compute the softmax in float32, because a float16 softmax here
        # would be less precise than that of the pipeline's fused attention.
        pairs = zip(query.chunk(heads, -1), key.chunk(heads, -1), strict=True)
        for head, (q, k) in enumerate(pairs):
            chosen = None if mask is None else mask[:, head]
            total = total + self.attention.get_attention_scores(q.float(), k.float(), chosen)
        return total / heads


class _Handles(ExitStack):
    """Handle for several hooks; `remove` removes all of them."""

    def remove(self) -> None:
        """Remove all hooks."""
        self.close()


def _recorder(values: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    """Build a hook that stores a module's output under a name."""
    return lambda _module, _inputs, output: values.__setitem__(name, output)
