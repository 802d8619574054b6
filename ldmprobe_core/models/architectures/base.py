"""Base classes for descriptions of diffusers pipelines: components, layers, latents, guidance."""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

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
"""Presets of ``capture.layers`` for UNets: preset name to globs over module names."""

PRESETS = (*UNET_PRESETS, "vae")
"""Names of all presets of ``capture.layers``; some architectures support only some of them."""


@dataclass(frozen=True)
class Guidance:
    """Pattern of the denoiser calls that a pipeline makes under classifier-free guidance.

    An architecture states the expected pattern, and each denoiser call is checked against it.

    Attributes:
        batch_copies: number of copies of the batch in one call.  If it is 2, the second copy is
            the conditional one.
        calls_per_step: number of denoiser calls per sampler step.  If it is 2, the first call is
            the conditional one.
    """

    batch_copies: int = 1
    calls_per_step: int = 1


class Architecture(ABC):
    """Description of a diffusers pipeline class, together with the configs of one model.

    It tells how to load and call the pipeline, how guidance works, which layers presets select, and
    how latents are laid out.  To support a new pipeline class, write a subclass that sets
    `denoiser`, `network` and `presets`, defines `dummy_inputs` and overrides the methods that
    differ; then register it with `register_architecture`.

    Args:
        pipeline_name: name of the pipeline class, such as ``StableDiffusionPipeline``.
        read_config: function from the name of a component, such as ``unet``, ``vae`` or
            ``scheduler``, to its config.
        source: folder or pipeline class from which the configs come, for messages.

    Attributes:
        denoiser: name of the pipeline component that is probed, such as ``unet``.
        network: class of the denoiser.
        presets: name of each preset of ``capture.layers`` to its globs over module names.
        joint_block_classes: names of the block classes that return a tuple (text, image).
        min_steps: smallest number of sampler steps for which the pipeline uses the result of every
            scheduler step.
        size_multiple: number of pixels of which the height and width of images must be multiples.
        optional_encoders: text encoders that the pipeline can do without.
        takes_negative: whether the pipeline's call accepts negative prompts.
        pipeline_class: diffusers pipeline class; None means the class named `pipeline_name`.
        vae_network: class of the VAE.
        probes_vae: whether layers of the VAE's decoder can be captured.
        load_arguments: further keyword arguments of the pipeline class's ``from_pretrained``.
        config, vae: configs of the denoiser and the VAE, in which keys that the model leaves out
            have their default values.
        scheduler: config of the model's scheduler, without default values.
    """

    denoiser: ClassVar[str]
    network: ClassVar[Any]
    presets: ClassVar[dict[str, tuple[str, ...]]]
    joint_block_classes: ClassVar[tuple[str, ...]] = ()
    min_steps: ClassVar[int] = 1
    size_multiple: ClassVar[int] = 1
    optional_encoders: ClassVar[tuple[str, ...]] = ()
    takes_negative: ClassVar[bool] = True
    pipeline_class: ClassVar[Any] = None
    vae_network: ClassVar[Any] = AutoencoderKL
    probes_vae: ClassVar[bool] = True
    load_arguments: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, pipeline_name: str, read_config: Callable[[str], dict[str, Any]], source: str
    ) -> None:
        self.pipeline_name, self.source = pipeline_name, source
        self.config = {**default_config(self.network), **read_config(self.denoiser)}
        # Fill in the default of every key except ``sample_size``.  If the VAE's config omits that
        # key, `Flux.latent` uses a default of its own.
        vae_defaults = {
            k: v for k, v in default_config(self.vae_network).items() if k != "sample_size"
        }
        self.vae = {**vae_defaults, **read_config("vae")}
        self.scheduler = read_config("scheduler")

    @classmethod
    def from_folder(cls, pipeline_name: str, folder: Path) -> Self:
        """Build the description of a model from the JSON configs in its folder.

        Args:
            pipeline_name: name of the model's pipeline class.
            folder: model folder in the layout of diffusers.

        Raises:
            UserError: a config is missing or is not a JSON object.
        """
        return cls(pipeline_name, lambda component: _read_json(folder, component), str(folder))

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> Self:
        """Build the description of a loaded pipeline's model from the configs of its components."""
        name = type(pipeline).__name__
        return cls(name, lambda component: _component_config(pipeline, component), name)

    def load_pipeline(self, folder: Path, **arguments: Any) -> Any:
        """Load the diffusers pipeline in a model folder.

        Args:
            folder: model folder in the layout of diffusers.
            arguments: further arguments of ``from_pretrained``, beside `load_arguments`.
        """
        return self.diffusers_class.from_pretrained(folder, **self.load_arguments, **arguments)

    @property
    def diffusers_class(self) -> Any:
        """Diffusers pipeline class that loads and runs the model."""
        return self.pipeline_class or getattr(diffusers, self.pipeline_name)

    # --- sizes --------------------------------------------------------------------------------

    @property
    def reduction(self) -> int:
        """VAE downsampling factor: image pixels per latent pixel along each side, such as 8."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def latent_channels(self) -> int:
        """Number of channels of the latents that the denoiser accepts."""
        return int(self.config["in_channels"])

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of the latents, such as (64, 64).

        Raises:
            UserError: the denoiser's config does not state a valid ``sample_size``.
        """
        side = self.config["sample_size"]
        sides = [side, side] if isinstance(side, int) else side
        if not (isinstance(sides, (list, tuple)) and len(sides) == 2 and all(map(_is_size, sides))):
            raise UserError(
                f"model: sample_size of the {self.denoiser} of {self.source} is not a valid size "
                f"({side!r:.40}). Fix: correct it in the {self.denoiser}'s config.json"
            )
        return int(sides[0]), int(sides[1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        height, width = self.latent
        return height * self.reduction, width * self.reduction

    @property
    def grid(self) -> Grid:
        """Token grid of a layer at the latents' resolution: one image token per latent pixel."""
        return Grid(*self.latent)

    def text_widths(self, encoders: dict[str, dict[str, Any]]) -> list[tuple[str, int, int]]:
        """Return the expected and actual width of each text embedding that the denoiser receives.

        Args:
            encoders: config of each text encoder by its name, such as ``text_encoder_2``.

        Returns:
            key of the denoiser's config, width that the denoiser expects, and actual width, which
            the text encoders return; widths that a config does not state are left out.
        """
        return []

    # --- calls --------------------------------------------------------------------------------

    def guidance(self, scale: float, negative: str | None) -> Guidance:
        """Return the pattern of denoiser calls that the pipeline makes at a guidance scale.

        Above a scale of 1, one call per step holds two copies of the batch.

        Args:
            scale: guidance scale; 1 means no guidance.
            negative: negative prompt, or None.
        """
        return Guidance(batch_copies=2 if scale > 1 else 1)

    def uses_guidance(self, negative: str | None) -> bool:
        """Return whether the guidance scale affects the images.

        Args:
            negative: negative prompt of the images, or None if they have none.
        """
        return True

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """Return the keyword arguments of the pipeline's call that set guidance and image size.

        Args:
            scale: guidance scale; 1 means no guidance.
            negative: negative prompt of each sample, or None.
        """
        height, width = self.size
        arguments: dict[str, Any] = {"guidance_scale": scale, "height": height, "width": width}
        if negative is not None and scale > 1:
            arguments["negative_prompt"] = negative
        return arguments

    def scheduler_config(self, class_name: str) -> dict[str, Any]:
        """Return the model's scheduler config, with the corrections that this pipeline class makes.

        Args:
            class_name: name of the diffusers scheduler class, such as ``DDIMScheduler``.
        """
        return self.scheduler

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Set the timesteps of a scheduler for a number of sampler steps, as the pipeline does."""
        scheduler.set_timesteps(steps)

    @abstractmethod
    def dummy_inputs(self) -> dict[str, Any]:
        """Build keyword arguments for a denoiser call on one sample; tensor values are arbitrary.

        They are used on the meta device to find the shapes of layers.  Text tokens, if the denoiser
        takes any, are in ``encoder_hidden_states`` (1, token, channel).
        """

    # --- latents ------------------------------------------------------------------------------

    def unpack(self, latents: Tensor) -> Tensor:
        """Convert latents from the pipeline's layout to (n, channel, y, x)."""
        return latents

    def pack(self, latents: Tensor) -> Tensor:
        """Convert latents (n, channel, y, x) to the pipeline's layout, the inverse of `unpack`."""
        return latents

    def as_input(self, latents: Tensor) -> Tensor:
        """Convert latents from the scheduler's layout to that of a pipeline's input ``latents``."""
        return latents

    def from_output(self, vae: Any, latents: Tensor) -> Tensor:
        """Convert latents returned by a pipeline call to the layout that its scheduler uses."""
        return latents

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode latents (n, channel, y, x) to images (n, rgb, y, x) with values near -1..1.

        Args:
            vae: the pipeline's `AutoencoderKL`.
            latents: latents at the scale of the denoiser.
        """
        return vae.decode(self.denormalise(latents.to(vae.dtype))).sample

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Encode images (n, rgb, y, x) in -1..1 as latents (n, channel, y, x).

        Args:
            vae: the pipeline's `AutoencoderKL`.
            images: images to encode.

        Returns:
            modes of the VAE's posterior, at the scale of the denoiser.
        """
        return self.normalise(vae.encode(images.to(vae.dtype)).latent_dist.mode())

    def denormalise(self, latents: Tensor) -> Tensor:
        """Convert latents from the denoiser's scale (about unit variance) to the VAE's scale.

        Pipeline classes differ in the keys of the VAE's config that they use for this; this base
        class uses only ``scaling_factor``.
        """
        return latents / self.vae["scaling_factor"]

    def normalise(self, latents: Tensor) -> Tensor:
        """Convert latents from the VAE's scale to the denoiser's scale (about unit variance).

        This is the inverse of `denormalise`.
        """
        return latents * self.vae["scaling_factor"]

    def check_vae(self) -> None:
        """Check that this pipeline class can use the model's VAE.

        Raises:
            UserError: the VAE is not a `vae_network`, or a value in its config is unusable.
        """
        needed = self.vae_network.__name__
        name = self.vae.get("_class_name", needed)
        if name != needed:
            self.refuse_vae("_class_name", name, f"use a pipeline with an {needed}")
        if not _is_size(self.vae["latent_channels"]):
            channels = self.vae["latent_channels"]
            self.refuse_vae("latent_channels", channels, "give a whole number of channels")
        factor = self.vae["scaling_factor"]
        if not _is_number(factor) or factor == 0:
            self.refuse_vae("scaling_factor", factor, "give a finite number other than 0")
        for key in ("in_channels", "out_channels"):
            if self.vae.get(key, 3) != 3:
                self.refuse_vae(key, self.vae[key], "use a VAE of images with 3 channels")

    def check_moments(self, channels: int) -> None:
        """Check that the VAE's config has a usable mean and standard deviation for each channel.

        Args:
            channels: number of channels of the VAE's latents.

        Raises:
            UserError: ``latents_mean`` or ``latents_std`` is not a finite number for each channel,
                or a standard deviation is 0.
        """
        for key in ("latents_mean", "latents_std"):
            values = self.vae[key]
            usable = isinstance(values, (list, tuple)) and len(values) == channels
            if not usable or not all(map(_is_number, values)):
                self.refuse_vae(key, values, f"give {channels} finite numbers")
        if not all(self.vae["latents_std"]):
            self.refuse_vae("latents_std", self.vae["latents_std"], "give numbers other than 0")

    def refuse_vae(self, key: str, value: Any, remedy: str) -> None:
        """Raise `UserError` for an unusable value in the VAE's config."""
        raise UserError(
            f"model: {key} in vae/config.json of {self.source} cannot be used by "
            f"{self.pipeline_name} ({value!r:.60}). Fix: {remedy}"
        )


class TransformerArchitecture(Architecture):
    """Base class for diffusion transformers, whose denoiser is the component ``transformer``."""

    denoiser = "transformer"

    @property
    def grid(self) -> Grid:
        """Token grid of the transformer: one image token for each patch of the latents."""
        patch = self.config["patch_size"]
        height, width = self.latent
        return Grid(height // patch, width // patch)


def default_config(component: Any) -> dict[str, Any]:
    """Return the default config values of a diffusers class; keys without a default are omitted."""
    parameters = inspect.signature(component.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _is_number(value: Any) -> bool:
    """Return whether a config value is a finite number, not a bool."""
    return type(value) in (int, float) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    """Return whether a config value is a positive whole number."""
    return type(value) is int and value > 0


def _read_json(folder: Path, component: str) -> dict[str, Any]:
    """Read the JSON config of one component in a model folder."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    path = folder / component / name
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("the content of a config file is not a JSON object")
        return config
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"model: {path} cannot be read ({type(error).__name__}), so the model folder is "
            "incomplete. Fix: fetch the model again"
        ) from error


def _component_config(pipeline: Any, component: str) -> dict[str, Any]:
    """Return the config of a pipeline component, with its class name under ``_class_name``."""
    part = getattr(pipeline, component)
    return {**part.config, "_class_name": type(part).__name__}
