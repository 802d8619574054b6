"""Base classes of architectures: configs, sizes, pipeline calls and latents of one model."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import diffusers
from torch import Tensor

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.token_grid import Grid

UNET_PRESETS = {
    "self-attention": ("*.attn1",),
    "cross-attention": ("*.attn2",),
    "resnets": ("*.resnets.[0-9]",),
    "blocks": ("down_blocks.[0-9]", "mid_block", "up_blocks.[0-9]"),
}
"""Presets of ``capture.layers`` on a UNet, as globs over its module names."""

PRESETS = (*UNET_PRESETS, "vae")
"""Every preset name of ``capture.layers``; an architecture need not have all of them."""


@dataclass(frozen=True)
class Guidance:
    """How classifier-free guidance reaches the denoiser; declared, then checked at every call.

    Attributes:
        batch_copies: copies of the batch in one call: 1, or 2, the second of which is conditional.
        calls_per_step: denoiser calls a step: 1, or 2, the first of which is conditional.
    """

    batch_copies: int = 1
    calls_per_step: int = 1


class Architecture(ABC):
    """How pipelines of one class are loaded, called, guided, captured and decoded.

    A subclass for a new pipeline class sets `denoiser`, `network` and `presets`, writes
    `dummy_inputs`, and overrides what differs; `register_architecture` makes it known.

    Args:
        pipeline_name: name of the pipeline class.
        read_config: component name ("unet", "vae", "scheduler", ...) to its config.
        source: where the configs come from, for messages.

    Attributes:
        denoiser: name of the pipeline component that is probed.
        network: class of the denoiser.
        presets: preset names of ``capture.layers``, each with its globs over module names.
        joint_block_classes: names of the block classes that return (text, image).
        pipeline_class: diffusers pipeline class; None takes the one that `pipeline_name` names.
        load_arguments: further keyword arguments of the pipeline class's ``from_pretrained``.
        config, vae, scheduler: configs of the denoiser, the VAE and the scheduler.
    """

    denoiser: ClassVar[str]
    network: ClassVar[Any]
    presets: ClassVar[dict[str, tuple[str, ...]]]
    joint_block_classes: ClassVar[tuple[str, ...]] = ()
    pipeline_class: ClassVar[Any] = None
    load_arguments: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, pipeline_name: str, read_config: Callable[[str], dict[str, Any]], source: str
    ) -> None:
        self.pipeline_name, self.source = pipeline_name, source
        self.config = read_config(self.denoiser)
        self.vae = read_config("vae")
        self.scheduler = read_config("scheduler")

    @classmethod
    def from_folder(cls, pipeline_name: str, folder: Path) -> Architecture:
        """Read the JSON configs of a model folder; no weights are loaded.

        Raises:
            UserError: a config is missing or is not a JSON object.
        """
        return cls(pipeline_name, lambda component: _read_json(folder, component), str(folder))

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> Architecture:
        """Take the configs of a loaded diffusers pipeline's components."""
        name = type(pipeline).__name__
        return cls(name, lambda component: _component_config(pipeline, component), name)

    def load_pipeline(self, folder: Path, **arguments: Any) -> Any:
        """Load the diffusers pipeline of a model folder.

        Args:
            arguments: of the pipeline class's ``from_pretrained``, beside `load_arguments`.
        """
        return self.diffusers_class.from_pretrained(folder, **self.load_arguments, **arguments)

    @property
    def diffusers_class(self) -> Any:
        """Pipeline class that loads and samples the model."""
        return self.pipeline_class or getattr(diffusers, self.pipeline_name)

    # --- sizes --------------------------------------------------------------------------------

    @property
    def reduction(self) -> int:
        """Image pixels per latent, in each direction."""
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
        """Height and width of the image tokens of a layer at full resolution."""
        return Grid(*self.latent)

    # --- calls --------------------------------------------------------------------------------

    def guidance(self, scale: float, negative: str | None) -> Guidance:
        """Denoiser calls under a guidance scale: above 1, one call with two copies of the batch."""
        return Guidance(batch_copies=2 if scale > 1 else 1)

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call, beside prompts, steps and generators."""
        height, width = self.size
        arguments: dict[str, Any] = {"guidance_scale": scale, "height": height, "width": width}
        if negative is not None and scale > 1:
            arguments["negative_prompt"] = negative
        return arguments

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Set the scheduler's timesteps to those that the pipeline will use."""
        scheduler.set_timesteps(steps)

    @abstractmethod
    def dummy_inputs(self) -> dict[str, Any]:
        """Keyword arguments of a denoiser call with one sample, for a dry run on the meta device.

        Text tokens, if the call has any, are ``encoder_hidden_states`` (1, token, channel).
        """

    # --- latents ------------------------------------------------------------------------------

    def unpack(self, latents: Tensor) -> Tensor:
        """Convert latents from the pipeline's layout to (n, channel, y, x)."""
        return latents

    def pack(self, latents: Tensor) -> Tensor:
        """Convert latents (n, channel, y, x) to the pipeline's layout; the inverse of `unpack`."""
        return latents

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode latents (n, channel, y, x) to images (n, rgb, y, x), about -1..1."""
        shift = vae.config.get("shift_factor") or 0.0
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + shift
        return vae.decode(scaled).sample

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Encode images (n, rgb, y, x) in -1..1 as latents (n, channel, y, x): posterior modes."""
        shift = vae.config.get("shift_factor") or 0.0
        mode = vae.encode(images.to(vae.dtype)).latent_dist.mode()
        return (mode - shift) * vae.config.scaling_factor


class TransformerArchitecture(Architecture):
    """Base class of diffusion transformers; the probed component is ``transformer``."""

    denoiser = "transformer"

    @property
    def grid(self) -> Grid:
        """Height and width of the token grid: tokens are patches of the latents."""
        patch = self.config["patch_size"]
        height, width = self.latent
        return Grid(height // patch, width // patch)


def _read_json(folder: Path, component: str) -> dict[str, Any]:
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    path = folder / component / name
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


def _component_config(pipeline: Any, component: str) -> dict[str, Any]:
    part = getattr(pipeline, component)
    return {**part.config, "_class_name": type(part).__name__}
