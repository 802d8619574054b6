"""Flux: joint and single blocks over text and image tokens, packed latents."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from ldmprobe_core.models.architectures.base import (
    Guidance,
    ShiftedLatents,
    TransformerArchitecture,
    dynamic_shift,
)
from ldmprobe_core.models.token_grid import Grid


class Flux(ShiftedLatents, TransformerArchitecture):
    """Flux: joint, then single blocks on a sequence of text and image tokens; packed latents.

    The guidance scale is an input of the distilled denoiser, with one call a step.  A negative
    prompt switches to classifier-free guidance in two calls: conditional, then unconditional.
    """

    network = FluxTransformer2DModel
    presets: ClassVar = {
        "self-attention": ("*transformer_blocks.*.attn",),
        "blocks": (
            "*transformer_blocks.[0-9]",
            "*transformer_blocks.[0-9][0-9]",
        ),
    }
    joint_block_classes = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    _TEXT = 77  # text tokens of the dry run; a capture takes the number from each call

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of the latents for the VAE's image size, else for 1024 pixels."""
        # The transformer takes any size; Flux was trained at 1024 pixels.
        pixels = int(self.vae.get("sample_size") or 1024)
        side = 2 * (pixels // (2 * self.reduction))
        return side, side

    @property
    def grid(self) -> Grid:
        """Height and width of the token grid; the pipeline packs 2 x 2 latents into a token."""
        return Grid(self.latent[0] // 2, self.latent[1] // 2)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents: a token holds 2 x 2 of them."""
        return int(self.config["in_channels"]) // 4

    def uses_guidance(self, negative: str | None) -> bool:
        """Whether the scale affects the images: as an input, or with a negative prompt."""
        return bool(self.config["guidance_embeds"]) or negative is not None

    def guidance(self, scale: float, negative: str | None) -> Guidance:
        """Denoiser calls: one a step, or two with a negative prompt."""
        return Guidance(calls_per_step=2 if negative is not None and scale > 1 else 1)

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """See `Architecture.arguments`; with a negative prompt the scale is the true guidance's."""
        arguments = super().arguments(scale, negative)
        if "negative_prompt" in arguments:
            arguments |= {"true_cfg_scale": scale, "guidance_scale": 1.0}
        return arguments

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Shift the schedule by the number of image tokens (Esser et al. 2024, section 5.3.2)."""
        mu = dynamic_shift(scheduler, self.grid, default_max_shift=1.15)
        if scheduler.config.get("use_flow_sigmas"):
            scheduler.set_timesteps(steps, mu=mu)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    def dummy_inputs(self) -> dict[str, Any]:
        """See `Architecture.dummy_inputs`."""
        tokens = self.grid.height * self.grid.width
        call = {
            "hidden_states": torch.empty(1, tokens, self.config["in_channels"]),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.empty(1, self._TEXT, self.config["joint_attention_dim"]),
            "pooled_projections": torch.empty(1, self.config["pooled_projection_dim"]),
            "img_ids": torch.zeros(tokens, 3),
            "txt_ids": torch.zeros(self._TEXT, 3),
        }
        if self.config.get("guidance_embeds"):
            call["guidance"] = torch.ones(1)
        return call

    def unpack(self, latents: Tensor) -> Tensor:
        """Convert tokens (n, token, 4 channel), whose channels are (channel, 2, 2), to a map."""
        n, _, packed = latents.shape
        rows, columns = self.grid.height, self.grid.width
        parts = latents.reshape(n, rows, columns, packed // 4, 2, 2)
        return parts.permute(0, 3, 1, 4, 2, 5).reshape(n, packed // 4, 2 * rows, 2 * columns)

    def pack(self, latents: Tensor) -> Tensor:
        """See `Architecture.pack`."""
        n, channels, height, width = latents.shape
        parts = latents.reshape(n, channels, height // 2, 2, width // 2, 2)
        return parts.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * channels)
