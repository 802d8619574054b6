"""Base classes of architectures: configs, sizes, pipeline calls and latents of one model."""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import diffusers
from diffusers import AutoencoderKL
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
    """Denoiser calls under classifier-free guidance; declared, then checked at every call.

    Attributes:
        batch_copies: copies of the batch in one call: 1, or 2, the second of which is conditional.
        calls_per_step: denoiser calls a step: 1, or 2, the first of which is conditional.
    """

    batch_copies: int = 1
    calls_per_step: int = 1


class Architecture(ABC):
    """Description of a pipeline class: loading, calls, guidance, layers and latents.

    A subclass for a new pipeline class sets `denoiser`, `network` and `presets`, defines
    `dummy_inputs`, and overrides the methods that differ; `register_architecture` makes it known.

    Args:
        pipeline_name: name of the pipeline class.
        read_config: function from a component's name ("unet", "vae", "scheduler", ...) to its
            config.
        source: folder or pipeline class that the configs come from, for messages.

    Attributes:
        denoiser: name of the pipeline component that is probed.
        network: class of the denoiser.
        presets: preset names of ``capture.layers``, each with its globs over module names.
        joint_block_classes: names of the block classes that return (text, image).
        min_steps: fewest sampler steps with which the pipeline steps as its scheduler does.
        size_multiple: pixels of which the pipeline takes only multiples as height and width.
        pipeline_class: diffusers pipeline class; None takes the one that `pipeline_name` names.
        load_arguments: further keyword arguments of the pipeline class's ``from_pretrained``.
        config, vae, scheduler: configs of the denoiser, the VAE and the scheduler; the first two
            with the defaults of keys that are left out.
    """

    denoiser: ClassVar[str]
    network: ClassVar[Any]
    presets: ClassVar[dict[str, tuple[str, ...]]]
    joint_block_classes: ClassVar[tuple[str, ...]] = ()
    min_steps: ClassVar[int] = 1
    size_multiple: ClassVar[int] = 1
    pipeline_class: ClassVar[Any] = None
    load_arguments: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, pipeline_name: str, read_config: Callable[[str], dict[str, Any]], source: str
    ) -> None:
        self.pipeline_name, self.source = pipeline_name, source
        self.config = {**default_config(self.network), **read_config(self.denoiser)}
        # Flux takes its image size from the VAE, but only from a size that the config states.
        vae_defaults = {
            k: v for k, v in default_config(AutoencoderKL).items() if k != "sample_size"
        }
        self.vae = {**vae_defaults, **read_config("vae")}
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
            arguments: keyword arguments of the pipeline class's ``from_pretrained``, beside
                `load_arguments`.
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
    def latent_channels(self) -> int:
        """Channels of the latents that the denoiser takes."""
        return int(self.config["in_channels"])

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of the latents."""
        side = self.config["sample_size"]
        sides = [side, side] if isinstance(side, int) else side
        if not (isinstance(sides, (list, tuple)) and len(sides) == 2 and all(map(_is_size, sides))):
            raise UserError(
                f"model: sample_size of {self.source}'s {self.denoiser} is no size ({side!r:.40}). "
                "Fix: state it in the denoiser's config.json"
            )
        return int(sides[0]), int(sides[1])

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

    def uses_guidance(self, negative: str | None) -> bool:
        """Whether the guidance scale affects the images."""
        return True

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call, beside prompts, steps and generators."""
        height, width = self.size
        arguments: dict[str, Any] = {"guidance_scale": scale, "height": height, "width": width}
        if negative is not None and scale > 1:
            arguments["negative_prompt"] = negative
        return arguments

    def scheduler_config(self, class_name: str) -> dict[str, Any]:
        """Config that this pipeline class would give a scheduler of a diffusers class."""
        return self.scheduler

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
        return vae.decode(self.denormalise(latents.to(vae.dtype))).sample

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Encode images (n, rgb, y, x) in -1..1 as latents (n, channel, y, x): posterior modes."""
        return self.normalise(vae.encode(images.to(vae.dtype)).latent_dist.mode())

    def denormalise(self, latents: Tensor) -> Tensor:
        """Bring the denoiser's latents to the VAE's scale, as this pipeline class does.

        Pipeline classes differ in the keys of the VAE's config that they read: here it is
        ``scaling_factor`` alone.
        """
        return latents / self.vae["scaling_factor"]

    def normalise(self, latents: Tensor) -> Tensor:
        """Bring the VAE's latents to the denoiser's scale; the inverse of `denormalise`."""
        return latents * self.vae["scaling_factor"]

    def check_vae(self) -> None:
        """Refuse a VAE that this pipeline class cannot use.

        Raises:
            UserError: another class than `AutoencoderKL`, or an unusable key of its config.
        """
        name = self.vae.get("_class_name", "AutoencoderKL")
        if name != "AutoencoderKL":
            self._refuse_vae("_class_name", name, "use a pipeline with an AutoencoderKL")
        factor = self.vae["scaling_factor"]
        if not _is_number(factor) or factor == 0:
            self._refuse_vae("scaling_factor", factor, "give a finite number other than 0")
        for key in ("in_channels", "out_channels"):
            if self.vae[key] != 3:
                self._refuse_vae(key, self.vae[key], "use a VAE of images with 3 channels")

    def _refuse_vae(self, key: str, value: Any, remedy: str) -> None:
        raise UserError(
            f"model: {key} in vae/config.json of {self.source} cannot be used by "
            f"{self.pipeline_name} ({value!r:.60}). Fix: {remedy}"
        )


class TransformerArchitecture(Architecture):
    """Base class of diffusion transformers; the probed component is ``transformer``."""

    denoiser = "transformer"

    @property
    def grid(self) -> Grid:
        """Height and width of the token grid: tokens are patches of the latents."""
        patch = self.config["patch_size"]
        height, width = self.latent
        return Grid(height // patch, width // patch)


class ShiftedLatents(Architecture):
    """Base class of pipelines whose latents are also shifted, by the VAE's ``shift_factor``."""

    def denormalise(self, latents: Tensor) -> Tensor:
        """See `Architecture.denormalise`."""
        return super().denormalise(latents) + self.vae["shift_factor"]

    def normalise(self, latents: Tensor) -> Tensor:
        """See `Architecture.normalise`."""
        return super().normalise(latents - self.vae["shift_factor"])

    def check_vae(self) -> None:
        """See `Architecture.check_vae`; without a shift the pipeline itself stops."""
        super().check_vae()
        if not _is_number(self.vae["shift_factor"]):
            self._refuse_vae("shift_factor", self.vae["shift_factor"], "give a number, 0 for none")


def dynamic_shift(scheduler: Any, grid: Grid, default_max_shift: float) -> float:
    """Shift mu of a flow-matching schedule for an image size, linear in the number of tokens.

    Args:
        grid: image tokens.
        default_max_shift: shift at ``max_image_seq_len`` tokens if the scheduler's config has none.
    """
    config = scheduler.config
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", default_max_shift)
    slope = (high - low) / (many - few)
    return grid.height * grid.width * slope + (low - slope * few)


def default_config(component: Any) -> dict[str, Any]:
    """Default of each key of a diffusers class's config; keys without a default are left out."""
    parameters = inspect.signature(component.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _read_json(folder: Path, component: str) -> dict[str, Any]:
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    path = folder / component / name
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("a config is a JSON object")
        return config
    except (OSError, ValueError) as error:
        raise UserError(
            f"model: {path} cannot be read ({type(error).__name__}), so the folder is no whole "
            "diffusers pipeline. Fix: fetch it again"
        ) from error


def _component_config(pipeline: Any, component: str) -> dict[str, Any]:
    part = getattr(pipeline, component)
    return {**part.config, "_class_name": type(part).__name__}
