"""Families of latent diffusion pipelines: how each is called, watched, decoded, and dry-run.

What the rest of the project needs to know of an architecture is here and nowhere else.  A family
reads a model folder's JSON configs only; weights come later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from ldmprobe_core.errors import UserError

_UNET_PRESETS = {
    "self-attention": ("*.attn1",),
    "cross-attention": ("*.attn2",),
    "resnets": ("*.resnets.[0-9]",),
    "blocks": ("down_blocks.[0-9]", "mid_block", "up_blocks.[0-9]"),
}
PRESETS = (*_UNET_PRESETS, "vae")
"""Names that stand for a family's own globs in ``capture.layers``."""


@dataclass(frozen=True)
class Guidance:
    """How classifier-free guidance reaches the denoiser; declared, then checked at every call.

    Attributes:
        halves: copies of the batch in one call; of two, the second is the conditional one.
        calls: denoiser calls a step; of two, the first is the conditional one.
    """

    halves: int = 1
    calls: int = 1


@dataclass(frozen=True)
class Grid:
    """Where tokens lie: height and width that they tile, and text tokens that may come before."""

    height: int
    width: int
    text: int = 0


class Family:
    """One architecture, on one model folder's configs.

    Attributes:
        denoiser: name of the pipeline's component that is probed.
        network: its class.
        presets: names for sets of layers, as globs over its modules.
        joint: classes of blocks that return (text, image).
    """

    denoiser = "unet"
    network: Any = UNet2DConditionModel
    presets: ClassVar[dict[str, tuple[str, ...]]] = _UNET_PRESETS
    joint: tuple[str, ...] = ()

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
        return Guidance(halves=2 if scale > 1 else 1)

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

    def dry_call(self) -> dict[str, Any]:
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


class _Transformer(Family):
    denoiser = "transformer"

    @property
    def grid(self) -> Grid:
        """Tokens are patches of the latents."""
        patch = self.config["patch_size"]
        height, width = self.latent
        return Grid(height // patch, width // patch)


class PixArt(_Transformer):
    """PixArt alpha and sigma: a transformer with cross-attention to the text."""

    network = PixArtTransformer2DModel
    presets: ClassVar = {
        "self-attention": ("*.attn1",),
        "cross-attention": ("*.attn2",),
        "blocks": ("transformer_blocks.[0-9]", "transformer_blocks.[0-9][0-9]"),
    }

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """Sizes are kept as they are, and captions too."""
        return {
            **super().arguments(scale, negative),
            "use_resolution_binning": False,
            "clean_caption": False,
        }

    def dry_call(self) -> dict[str, Any]:
        """See `Family.dry_call`."""
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


class StableDiffusion3(_Transformer):
    """Stable Diffusion 3: joint blocks, image and text tokens side by side; flow matching."""

    network = SD3Transformer2DModel
    presets: ClassVar = {
        "self-attention": ("transformer_blocks.*.attn",),
        "blocks": ("transformer_blocks.[0-9]", "transformer_blocks.[0-9][0-9]"),
    }
    joint = ("JointTransformerBlock",)

    def dry_call(self) -> dict[str, Any]:
        """See `Family.dry_call`."""
        return {
            "hidden_states": torch.empty(1, self.config["in_channels"], *self.latent),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.empty(1, 77, self.config["joint_attention_dim"]),
            "pooled_projections": torch.empty(1, self.config["pooled_projection_dim"]),
        }


class Flux(_Transformer):
    """Flux: joint, then single blocks on text and image tokens in one row; packed latents.

    Guidance is an input of the distilled denoiser, one call a step.  With a negative prompt it is
    classifier-free guidance proper instead, in two calls: conditional, then unconditional.
    """

    network = FluxTransformer2DModel
    presets: ClassVar = {
        "self-attention": ("*transformer_blocks.*.attn",),
        "blocks": (
            "*transformer_blocks.[0-9]",
            "*transformer_blocks.[0-9][0-9]",
        ),
    }
    joint = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    _TEXT = 77  # tokens of the dry run; the real number is read off each call

    @property
    def latent(self) -> tuple[int, int]:
        """The transformer takes any size: the VAE's, or 1024 pixels as Flux was trained."""
        pixels = int(self.vae.get("sample_size") or 1024)
        side = 2 * (pixels // (2 * self.reduction))
        return side, side

    @property
    def grid(self) -> Grid:
        """Tokens are 2 x 2 latents, whatever the transformer's own patch size."""
        return Grid(self.latent[0] // 2, self.latent[1] // 2)

    def guidance(self, scale: float, negative: str | None) -> Guidance:
        """One call, or two with a negative prompt."""
        return Guidance(calls=2 if negative is not None and scale > 1 else 1)

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """See the class."""
        said = super().arguments(scale, negative)
        if "negative_prompt" in said:
            said |= {"true_cfg_scale": scale, "guidance_scale": 1.0}
        return said

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Flux's schedule is shifted by the number of image tokens (Esser et al. 2024, 5.3.2)."""
        config = scheduler.config
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        tokens = self.grid.height * self.grid.width
        mu = low + (high - low) * (tokens - few) / (many - few)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)

    def dry_call(self) -> dict[str, Any]:
        """See `Family.dry_call`."""
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
        """Each token's channels are (channel, 2, 2)."""
        n, _, packed = latents.shape
        rows, columns = self.grid.height, self.grid.width
        parts = latents.reshape(n, rows, columns, packed // 4, 2, 2)
        return parts.permute(0, 3, 1, 4, 2, 5).reshape(n, packed // 4, 2 * rows, 2 * columns)

    def pack(self, latents: Tensor) -> Tensor:
        """See `Family.pack`."""
        n, channels, height, width = latents.shape
        parts = latents.reshape(n, channels, height // 2, 2, width // 2, 2)
        return parts.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * channels)


_FAMILIES: dict[str, tuple[type[Family], type[DiffusionPipeline]]] = {
    "StableDiffusionPipeline": (Family, StableDiffusionPipeline),
    "StableDiffusionXLPipeline": (StableDiffusionXL, StableDiffusionXLPipeline),
    "StableDiffusion3Pipeline": (StableDiffusion3, StableDiffusion3Pipeline),
    "PixArtAlphaPipeline": (PixArt, PixArtAlphaPipeline),
    "PixArtSigmaPipeline": (PixArt, PixArtSigmaPipeline),
    "FluxPipeline": (Flux, FluxPipeline),
}


def family_of(folder: Path) -> Family:
    """The family of a model folder.

    Raises:
        UserError: it is not a diffusers pipeline of a family that can be probed.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"model.source: {folder / 'model_index.json'} does not name a pipeline "
            f"({type(error).__name__}): give a folder written by save_pretrained"
        ) from error
    if name not in _FAMILIES:
        raise UserError(
            f"model.source: a {name!s:.60} cannot be probed; supported are {', '.join(_FAMILIES)}"
        )
    kind, pipeline = _FAMILIES[name]
    return kind(folder, pipeline)


def to_grid(output: Any, grid: Grid, item: int = 0) -> Tensor:
    """A module's output as (n, y, x, channel).

    Args:
        output: tokens (n, token, channel), row by row, or a feature map (n, channel, y, x); of a
            tuple, its ``item``.
        grid: what the tokens tile, at any scale; where there are text tokens too, they come first
            and are dropped.

    Raises:
        ValueError: the output is neither.
    """
    tensor = output[item] if isinstance(output, (tuple, list)) else output
    if not isinstance(tensor, Tensor) or tensor.ndim not in (3, 4):
        shape = f" of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else ""
        raise ValueError(f"it gives a {type(tensor).__name__}{shape}, not tokens or a map")
    if tensor.ndim == 4:
        return tensor.permute(0, 2, 3, 1)
    n, tokens, channels = tensor.shape
    if grid.text and tokens == grid.text + grid.height * grid.width:
        tensor = tensor[:, grid.text :]
        tokens -= grid.text
    across = round(math.sqrt(tokens * grid.width / grid.height))
    if across == 0 or tokens % across or tokens // across * grid.width != across * grid.height:
        raise ValueError(f"its {tokens} tokens do not tile {grid.height} x {grid.width}")
    return tensor.reshape(n, tokens // across, across, channels)


def change_grid(
    output: Any, grid: Grid, item: int, halves: int, change: Callable[[Tensor], Tensor]
) -> Any:
    """A module's output with the conditional half of its image tokens changed.

    Args:
        output, grid, item: as for `to_grid`.
        halves: copies of the batch; the last one is the conditional.
        change: tokens (n, y, x, channel) float32 to the same; what it leaves as it is stays bit for
            bit.
    """
    parts = list(output) if isinstance(output, (tuple, list)) else [output]
    tensor = parts[item if isinstance(output, (tuple, list)) else 0]
    new = tensor.clone()
    view = to_grid(new, grid)
    n = len(view) // halves
    old = view[-n:].float()
    view[-n:] += (change(old) - old).to(new.dtype)
    if not isinstance(output, (tuple, list)):
        return new
    parts[item] = new
    return type(output)(parts)
