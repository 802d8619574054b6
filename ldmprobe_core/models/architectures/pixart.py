"""Architectures of PixArt-alpha and PixArt-sigma, transformers with cross-attention to text."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import PixArtTransformer2DModel

from ldmprobe_core.models.architectures.base import TransformerArchitecture
from ldmprobe_core.models.architectures.text_widths import stated_widths


class PixArt(TransformerArchitecture):
    """PixArt-sigma, a diffusion transformer with cross-attention to the text."""

    network = PixArtTransformer2DModel
    presets: ClassVar = {
        "self-attention": ("*.attn1",),
        "cross-attention": ("*.attn2",),
        "blocks": ("transformer_blocks.[0-9]", "transformer_blocks.[0-9][0-9]"),
    }

    size_multiple = 8
    _passes_size: ClassVar[bool] = False

    def text_widths(self, encoders: dict[str, dict[str, Any]]) -> list[tuple[str, int, int]]:
        """Return expected and actual width of T5's token embeddings."""
        width = encoders.get("text_encoder", {}).get("d_model")
        return stated_widths([("caption_channels", self.config["caption_channels"], [width])])

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """Return the keyword arguments of the pipeline's call that set guidance and image size.

        Two options of the pipeline are turned off: rounding of the image size, and rewriting of
        prompts.
        """
        return {
            **super().arguments(scale, negative),
            "use_resolution_binning": False,
            "clean_caption": False,
        }

    def dummy_inputs(self) -> dict[str, Any]:
        """Build keyword arguments for a call of PixArt's transformer on one sample."""
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self._passes_size and self.config["sample_size"] == 128:
            added = {"resolution": torch.empty(1, 2), "aspect_ratio": torch.empty(1, 1)}
        return {
            "hidden_states": torch.empty(1, self.config["in_channels"], *self.latent),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.empty(1, 77, self.config["caption_channels"]),
            "added_cond_kwargs": added,
        }


class PixArtAlpha(PixArt):
    """PixArt-alpha, whose models for 1024 pixels receive the image size as a further input.

    At least 2 sampler steps are required, because with a single step the pipeline uses the
    predicted clean latents instead of the result of the scheduler's step.
    """

    min_steps = 2
    _passes_size = True
