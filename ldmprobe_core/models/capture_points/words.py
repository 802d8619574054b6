"""Maps of the attention that image tokens pay to each token of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ldmprobe_core.models.capture_points.channels import CapturePoint


@dataclass(frozen=True)
class WordMaps:
    """Capture point of the attention probabilities of a cross-attention layer.

    The pipeline's fused attention returns no probabilities.  They are computed a second time from
    the queries and keys of its own call, so that the pipeline's result keeps its bits.

    Attributes:
        attention: cross-attention layer of diffusers, without normalisation of queries and keys.
        query, key: capture points of its queries and keys.
    """

    attention: Any
    query: CapturePoint
    key: CapturePoint

    def register_forward_hook(self, hook: Callable[[nn.Module, Any, Any], Any]) -> Any:
        """Register a hook on the maps, (n, image token, text token), averaged over the heads.

        The values that the hook returns are ignored, because the pipeline does not use the maps.
        """
        split_heads = self.attention.head_to_batch_dim
        projected: dict[str, Tensor] = {}

        def compute(module: nn.Module, inputs: Any, kwargs: dict[str, Any], _output: Any) -> None:
            # Computed in float32, because a softmax in float16 would be less precise than the
            # softmax inside the pipeline's fused attention.
            query, key = (projected.pop(name).float() for name in ("query", "key"))
            mask = kwargs.get("attention_mask")
            if mask is not None:
                mask = self.attention.prepare_attention_mask(mask, key.shape[1], len(key)).float()
            scores = self.attention.get_attention_scores(split_heads(query), split_heads(key), mask)
            hook(module, inputs, scores.unflatten(0, (len(query), -1)).mean(1))

        handles = _Handles()
        for name, point in (("query", self.query), ("key", self.key)):
            record = _recorder(projected, name)
            handles.callback(point.register_forward_hook(record).remove)
        handles.callback(self.attention.register_forward_hook(compute, with_kwargs=True).remove)
        return handles


class _Handles(ExitStack):
    """Handle of several hooks, which `remove` removes together."""

    def remove(self) -> None:
        """Remove all hooks."""
        self.close()


def _recorder(values: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    """Build a hook that stores a module's output under a name."""
    return lambda _module, _inputs, output: values.__setitem__(name, output)
