"""Stable Diffusion XL: a UNet with pooled text and sizes as further inputs."""

from __future__ import annotations

from typing import Any

import torch

from ldmprobe_core.models.architectures.base import Architecture


class StableDiffusionXL(Architecture):
    """Stable Diffusion XL: pooled text and image sizes come beside the prompt."""

    def dummy_inputs(self) -> dict[str, Any]:
        """See `Architecture.dummy_inputs`."""
        times = 6
        pooled = (
            self.config["projection_class_embeddings_input_dim"]
            - times * self.config["addition_time_embed_dim"]
        )
        added = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, times)}
        return {**super().dummy_inputs(), "added_cond_kwargs": added}
