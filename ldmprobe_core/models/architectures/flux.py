"""Architecture of Flux, a flow-matching transformer over text and image tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from ldmprobe_core.models.architectures.base import (
    Guidance,
    TransformerArchitecture,
)
from ldmprobe_core.models.architectures.flow_matching import ShiftedLatents, dynamic_shift
from ldmprobe_core.models.architectures.text_widths import stated_widths
from ldmprobe_core.models.token_grid import Grid


class Flux(ShiftedLatents, TransformerArchitecture):
    """Flux, a transformer over a sequence of text tokens and image tokens.

    The pipeline packs each 2 x 2 block of latents into one image token.  The guidance scale is an
    input of the denoiser, which is called once per step.  With a negative prompt, the pipeline uses
    classifier-free guidance instead and makes two calls per step: conditional, then unconditional.
    """

    network = FluxTransformer2DModel
    presets: ClassVar = {
        "self-attention": ("*transformer_blocks.*.attn",),
        "blocks": (
            "*transformer_blocks.[0-9]",
            "*transformer_blocks.[0-9][0-9]",
        ),
    }
    joint_block_classes: ClassVar[tuple[str, ...]] = (
        "FluxTransformerBlock",
        "FluxSingleTransformerBlock",
    )
    # `dummy_inputs` uses this number of text tokens.  The value does not matter, because the
    # shapes of layers do not depend on it.
    _TEXT = 77

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of the latents at the model's image size, by default 1024 pixels."""
        # The transformer accepts any image size, so its config states none.  If the VAE's config
        # states none either, the size is 1024, at which Flux was trained.
        pixels = int(self.vae.get("sample_size") or 1024)
        side = 2 * (pixels // (2 * self.reduction))
        return side, side

    @property
    def grid(self) -> Grid:
        """Token grid of the transformer: one image token for each block of 2 x 2 latent pixels."""
        return Grid(self.latent[0] // 2, self.latent[1] // 2)

    @property
    def latent_channels(self) -> int:
        """Number of latent channels: a quarter of the channels of a token (2 x 2 latent pixels)."""
        return int(self.config["in_channels"]) // 4

    def text_widths(self, encoders: dict[str, dict[str, Any]]) -> list[tuple[str, int, int]]:
        """Return expected and actual widths of CLIP's pooled embedding and T5's embeddings."""
        pooled = encoders.get("text_encoder", {}).get("hidden_size")
        width = encoders.get("text_encoder_2", {}).get("d_model")
        return stated_widths(
            [
                ("pooled_projection_dim", self.config["pooled_projection_dim"], [pooled]),
                ("joint_attention_dim", self.config["joint_attention_dim"], [width]),
            ]
        )

    def uses_guidance(self, negative: str | None) -> bool:
        """Return whether the guidance scale affects the images.

        It does if it is an input of the denoiser, or if there is a negative prompt.

        Args:
            negative: negative prompt of the images, or None if they have none.
        """
        return bool(self.config["guidance_embeds"]) or negative is not None

    def guidance(self, scale: float, negative: str | None) -> Guidance:
        """Return the pattern of denoiser calls: two per step with a negative prompt, else one."""
        return Guidance(calls_per_step=2 if negative is not None and scale > 1 else 1)

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """Return the keyword arguments of the pipeline's call that set guidance and image size.

        With a negative prompt, the scale is that of classifier-free guidance (``true_cfg_scale``).
        """
        arguments = super().arguments(scale, negative)
        if "negative_prompt" in arguments:
            arguments |= {"true_cfg_scale": scale, "guidance_scale": 1.0}
        return arguments

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Set a scheduler's timesteps, with a shift that depends on the number of image tokens.

        The shift is that of Esser et al. 2024, section 5.3.2.
        """
        mu = dynamic_shift(scheduler, self.grid, default_max_shift=1.15)
        if scheduler.config.get("use_flow_sigmas"):
            scheduler.set_timesteps(steps, mu=mu)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    def dummy_inputs(self) -> dict[str, Any]:
        """Build keyword arguments for a call of Flux's transformer on one sample."""
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
        """Convert latents from the pipeline's token sequence to a feature map (n, channel, y, x).

        Args:
            latents: (n, token, 4 * channel); each token holds a 2 x 2 block of the map, with its
                values in the order (channel, y, x).

        Returns:
            (n, channel, y, x).
        """
        n, _, packed = latents.shape
        rows, columns = self.grid.height, self.grid.width
        parts = latents.reshape(n, rows, columns, packed // 4, 2, 2)
        return parts.permute(0, 3, 1, 4, 2, 5).reshape(n, packed // 4, 2 * rows, 2 * columns)

    def pack(self, latents: Tensor) -> Tensor:
        """Convert latents (n, channel, y, x) to tokens (n, token, 4 * channel)."""
        n, channels, height, width = latents.shape
        parts = latents.reshape(n, channels, height // 2, 2, width // 2, 2)
        return parts.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * channels)
