"""Architecture of Sana, a transformer with linear attention on strongly compressed latents."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import Tensor

from ldmprobe_core.models.architectures.base import TransformerArchitecture
from ldmprobe_core.models.architectures.text_widths import stated_widths


class Sana(TransformerArchitecture):
    """Sana, a transformer with linear self-attention and cross-attention to the text.

    Its autoencoder (DC-AE) gives one latent for each block of 32 x 32 pixels.  It has no attention
    in the middle of its decoder, so the preset ``vae`` names no layer.
    """

    network = SanaTransformer2DModel
    vae_network = AutoencoderDC
    presets: ClassVar = {
        "self-attention": ("*.attn1",),
        "cross-attention": ("*.attn2",),
        "blocks": ("transformer_blocks.[0-9]", "transformer_blocks.[0-9][0-9]"),
    }
    size_multiple = 32

    @property
    def reduction(self) -> int:
        """VAE downsampling factor: image pixels per latent pixel along each side, such as 32."""
        return int(2 ** (len(self.vae["encoder_block_out_channels"]) - 1))

    def text_widths(self, encoders: dict[str, dict[str, Any]]) -> list[tuple[str, int, int]]:
        """Return expected and actual width of the language model's token embeddings."""
        width = encoders.get("text_encoder", {}).get("hidden_size")
        return stated_widths([("caption_channels", self.config["caption_channels"], [width])])

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """Return the keyword arguments of the pipeline's call that set guidance and image size.

        Rounding of the image size and cleaning of prompts are turned off.  The instruction that the
        pipeline puts before each prompt stays.
        """
        return {
            **super().arguments(scale, negative),
            "use_resolution_binning": False,
            "clean_caption": False,
        }

    def dummy_inputs(self) -> dict[str, Any]:
        """Build keyword arguments for a call of Sana's transformer on one sample."""
        return {
            "hidden_states": torch.empty(1, self.config["in_channels"], *self.latent),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.empty(1, 77, self.config["caption_channels"]),
        }

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Encode images (n, rgb, y, x) in -1..1 as latents (n, channel, y, x).

        The autoencoder has no posterior: its latents are not drawn at random.
        """
        return self.normalise(vae.encode(images.to(vae.dtype)).latent)
