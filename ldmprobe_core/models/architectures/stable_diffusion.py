"""Stable Diffusion 1.x, 2.x and XL: UNets with cross-attention to the text."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel

from ldmprobe_core.models.architectures.base import UNET_PRESETS, Architecture


class UNetArchitecture(Architecture):
    """Base class of pipelines around a conditional UNet; the probed component is ``unet``."""

    denoiser = "unet"
    network = UNet2DConditionModel
    presets: ClassVar = UNET_PRESETS

    def dummy_inputs(self) -> dict[str, Any]:
        """See `Architecture.dummy_inputs`."""
        return {
            "sample": torch.empty(1, self.config["in_channels"], *self.latent),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.empty(1, 77, self.config["cross_attention_dim"]),
        }


class StableDiffusion(UNetArchitecture):
    """Stable Diffusion 1.x and 2.x, loaded without the safety checker, which blacks images out."""

    load_arguments: ClassVar = {"safety_checker": None, "requires_safety_checker": False}


class StableDiffusionXL(UNetArchitecture):
    """Stable Diffusion XL: pooled text and image sizes are further inputs of the UNet."""

    def dummy_inputs(self) -> dict[str, Any]:
        """See `Architecture.dummy_inputs`."""
        times = 6
        pooled = (
            self.config["projection_class_embeddings_input_dim"]
            - times * self.config["addition_time_embed_dim"]
        )
        added = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, times)}
        return {**super().dummy_inputs(), "added_cond_kwargs": added}
