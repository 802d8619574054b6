"""Stable Diffusion XL: a UNet with pooled text and sizes as further inputs."""

from __future__ import annotations

from typing import Any

import torch

from ldmprobe_core.models.architectures.base import Family


class StableDiffusionXL(Family):
    """Stable Diffusion XL: pooled text and image sizes come beside the prompt."""

    def dry_call(self) -> dict[str, Any]:
        """See `Family.dry_call`."""
        times = 6
        pooled = (
            self.config["projection_class_embeddings_input_dim"]
            - times * self.config["addition_time_embed_dim"]
        )
        added = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, times)}
        return {**super().dry_call(), "added_cond_kwargs": added}
