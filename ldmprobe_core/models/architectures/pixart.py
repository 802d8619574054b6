"""PixArt-alpha and PixArt-sigma: a diffusion transformer with cross-attention."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import PixArtTransformer2DModel

from ldmprobe_core.models.architectures.base import TransformerArchitecture


class PixArt(TransformerArchitecture):
    """PixArt alpha and sigma: a transformer with cross-attention to the text."""

    network = PixArtTransformer2DModel
    presets: ClassVar = {
        "self-attention": ("*.attn1",),
        "cross-attention": ("*.attn2",),
        "blocks": ("transformer_blocks.[0-9]", "transformer_blocks.[0-9][0-9]"),
    }

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """See `Architecture.arguments`; image sizes and captions are not rewritten."""
        return {
            **super().arguments(scale, negative),
            "use_resolution_binning": False,
            "clean_caption": False,
        }

    def dummy_inputs(self) -> dict[str, Any]:
        """See `Architecture.dummy_inputs`."""
        added: dict[str, Any]
        extra = self.config.get("use_additional_conditions")
        if extra or (extra is None and self.config["sample_size"] == 128):
            added = {"resolution": torch.empty(1, 2), "aspect_ratio": torch.empty(1, 1)}
        else:  # the model asks for the keys either way
            added = {"resolution": None, "aspect_ratio": None}
        return {
            "hidden_states": torch.empty(1, self.config["in_channels"], *self.latent),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.empty(1, 77, self.config["caption_channels"]),
            "added_cond_kwargs": added,
        }
