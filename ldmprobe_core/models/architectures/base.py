"""None"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    UNet2DConditionModel,
)
from torch import Tensor

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.token_grid import Grid

UNET_PRESETS = {
    "self-attention": ("*.attn1",),
    "cross-attention": ("*.attn2",),
    "resnets": ("*.resnets.[0-9]",),
    "blocks": ("down_blocks.[0-9]", "mid_block", "up_blocks.[0-9]"),
}
PRESETS = (*UNET_PRESETS, "vae")
"""Names that stand for a family's own globs in ``capture.layers``."""


@dataclass(frozen=True)
class Guidance:
    """How classifier-free guidance reaches the denoiser; declared, then checked at every call.

    Attributes:
        halves: copies of the batch in one call; of two, the second is the conditional one.
        calls_per_step: denoiser calls a step; of two, the first is the conditional one.
    """

    batch_copies: int = 1
    calls_per_step: int = 1


class Architecture:
    """One architecture, on one model folder's configs.

    Attributes:
        denoiser: name of the pipeline's component that is probed.
        network: its class.
        presets: names for sets of layers, as globs over its modules.
        joint: classes of blocks that return (text, image).
    """

    denoiser = "unet"
    network: Any = UNet2DConditionModel
    presets: ClassVar[dict[str, tuple[str, ...]]] = UNET_PRESETS
    joint_block_classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, pipeline: Any) -> None:
        self.folder, self.pipeline = folder, pipeline
        self.config = self.read(self.denoiser)
        self.vae = self.read("vae")
        self.scheduler = self.read("scheduler", "scheduler_config.json")

    def read(self, part: str, name: str = "config.json") -> dict[str, Any]:
        """A component's config.

        Raises:
            UserError: it is missing or is not JSON.
        """
        path = self.folder / part / name
        try:
            config = json.loads(path.read_text("utf-8"))
            if not isinstance(config, dict):
                raise ValueError("a config is a mapping")
            return config
        except (OSError, ValueError) as error:
            raise UserError(
                f"model: {path} cannot be read ({type(error).__name__}): the folder is no whole "
                "diffusers pipeline, fetch it again"
            ) from error

    # --- sizes --------------------------------------------------------------------------------

    @property
    def reduction(self) -> int:
        """Pixels of an image to one of its latents, each way."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of the latents."""
        side = self.config["sample_size"]
        return (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        height, width = self.latent
        return height * self.reduction, width * self.reduction

    @property
    def grid(self) -> Grid:
        """What tokens tile."""
        return Grid(*self.latent)

    # --- calls --------------------------------------------------------------------------------

    def guidance(self, scale: float, negative: str | None) -> Guidance:
        """What the pipeline does with a guidance scale: both halves in one call, above 1."""
        return Guidance(batch_copies=2 if scale > 1 else 1)

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call, beside prompts, steps and generators."""
        height, width = self.size
        said: dict[str, Any] = {"guidance_scale": scale, "height": height, "width": width}
        if negative is not None and scale > 1:
            said["negative_prompt"] = negative
        return said

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Set the scheduler's timesteps as the pipeline will."""
        scheduler.set_timesteps(steps)

    def dummy_inputs(self) -> dict[str, Any]:
        """Keyword arguments of a denoiser call on the meta device, one sample."""
        return {
            "sample": torch.empty(1, self.config["in_channels"], *self.latent),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.empty(1, 77, self.config["cross_attention_dim"]),
        }

    # --- latents ------------------------------------------------------------------------------

    def unpack(self, latents: Tensor) -> Tensor:
        """Latents as the pipeline hands them on, to (n, channel, y, x)."""
        return latents

    def pack(self, latents: Tensor) -> Tensor:
        """The reverse of `unpack`."""
        return latents

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Images (n, rgb, y, x), about -1..1, of latents (n, channel, y, x)."""
        shift = vae.config.get("shift_factor") or 0.0
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + shift
        return vae.decode(scaled).sample

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Latents (n, channel, y, x) of images (n, rgb, y, x) in -1..1; the mode, no sampling."""
        shift = vae.config.get("shift_factor") or 0.0
        mode = vae.encode(images.to(vae.dtype)).latent_dist.mode()
        return (mode - shift) * vae.config.scaling_factor


class TransformerArchitecture(Architecture):
    """Base class of diffusion transformers: the probed component is ``transformer``."""

    denoiser = "transformer"

    @property
    def grid(self) -> Grid:
        """Tokens are patches of the latents."""
        patch = self.config["patch_size"]
        height, width = self.latent
        return Grid(height // patch, width // patch)
