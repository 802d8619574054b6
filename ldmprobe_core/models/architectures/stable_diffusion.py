"""Architectures of Stable Diffusion 1.x, 2.x and XL, UNets with cross-attention to the text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import LCMScheduler, TCDScheduler, UNet2DConditionModel
from torch import Tensor, nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import (
    UNET_PRESETS,
    Architecture,
    Guidance,
)
from ldmprobe_core.models.architectures.text_widths import stated_widths


class UNetArchitecture(Architecture):
    """Base class for pipelines whose denoiser, the component ``unet``, is conditioned on text."""

    denoiser = "unet"
    network = UNet2DConditionModel
    presets: ClassVar = UNET_PRESETS
    size_multiple = 8

    def guidance(self, scale: float, negative: str | None) -> Guidance:
        """Return the pattern of UNet calls that the pipeline makes at a guidance scale.

        UNets with ``time_cond_proj_dim`` in their config (latent consistency models) take the
        guidance scale as an input, so each call holds only one copy of the batch.
        """
        if self.config["time_cond_proj_dim"] is not None:
            return Guidance()
        return super().guidance(scale, negative)

    def text_widths(self, encoders: dict[str, dict[str, Any]]) -> list[tuple[str, int, int]]:
        """Return expected and actual width of the text encoders' concatenated embeddings."""
        if self.config.get("encoder_hid_dim_type") is not None:
            return []
        widths = [config.get("hidden_size") for config in encoders.values()]
        return stated_widths([("cross_attention_dim", self.config["cross_attention_dim"], widths)])

    def dummy_inputs(self) -> dict[str, Any]:
        """Build keyword arguments for a call of the UNet on one sample."""
        width = self.config["cross_attention_dim"]
        call = {
            "sample": torch.empty(1, self.config["in_channels"], *self.latent),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.empty(1, 77, width),
        }
        if self.config["time_cond_proj_dim"] is not None:
            call["timestep_cond"] = torch.empty(1, self.config["time_cond_proj_dim"])
        return call


class StableDiffusion(UNetArchitecture):
    """Stable Diffusion 1.x and 2.x, without the safety checker.

    The checker would replace some images by black ones.
    """

    load_arguments: ClassVar = {"safety_checker": None, "requires_safety_checker": False}

    def scheduler_config(self, class_name: str) -> dict[str, Any]:
        """Return the scheduler config with the two corrections that the pipeline makes to it.

        The corrections are ``steps_offset`` 1 and ``clip_sample`` false.  For a scheduler class
        other than the model's own, they apply only if the config states the key.

        Args:
            class_name: name of the diffusers scheduler class, such as ``DDIMScheduler``.
        """
        config = dict(self.scheduler)
        is_own = class_name == config.get("_class_name")
        if config.get("steps_offset", 0 if is_own else 1) != 1:
            config["steps_offset"] = 1
        if config.get("clip_sample", is_own) is True:
            config["clip_sample"] = False
        return config


class LatentConsistency(StableDiffusion):
    """Latent consistency model, whose UNet takes the guidance scale as an input.

    Its pipeline has no negative prompt, and works with the schedulers of few-step models only.
    """

    def guidance(self, scale: float, negative: str | None) -> Guidance:
        """Return the pattern of UNet calls: one per step, with one copy of the batch."""
        return Guidance()

    def uses_guidance(self, negative: str | None) -> bool:
        """Return whether the guidance scale is an input of the UNet, so that it affects images."""
        return self.config["time_cond_proj_dim"] is not None

    def scheduler_config(self, class_name: str) -> dict[str, Any]:
        """Return the scheduler config as it is, because this pipeline makes no corrections."""
        return self.scheduler

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Set the timesteps of a scheduler, which must be of the class LCM or TCD.

        Raises:
            UserError: the pipeline cannot work with the scheduler.
        """
        if not isinstance(scheduler, (LCMScheduler, TCDScheduler)):
            raise UserError(
                f"sampling.scheduler: {self.pipeline_name} cannot use {type(scheduler).__name__}. "
                "Fix: set sampling.scheduler to lcm or tcd"
            )
        super().set_steps(scheduler, steps)


class StableDiffusionXL(UNetArchitecture):
    """Stable Diffusion XL, whose UNet also takes a pooled text embedding and the image size."""

    optional_encoders = ("text_encoder",)
    _TIMES: ClassVar[int] = 6

    def text_widths(self, encoders: dict[str, dict[str, Any]]) -> list[tuple[str, int, int]]:
        """Return expected and actual widths of the token embeddings and of `add_embedding`'s input.

        That input concatenates the pooled text embedding and the embeddings of the image size.
        """
        pooled = encoders.get("text_encoder_2", {}).get("projection_dim")
        key = "projection_class_embeddings_input_dim"
        times = self._TIMES * self.config["addition_time_embed_dim"]
        added = stated_widths([(key, self.config[key], [pooled, times])])
        return super().text_widths(encoders) + added

    def dummy_inputs(self) -> dict[str, Any]:
        """Build keyword arguments for a UNet call, with a pooled text embedding and image size."""
        pooled = (
            self.config["projection_class_embeddings_input_dim"]
            - self._TIMES * self.config["addition_time_embed_dim"]
        )
        added = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, self._TIMES)}
        return {**super().dummy_inputs(), "added_cond_kwargs": added}

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode latents to images, in float32 where the pipeline does so; see `_upcast`."""
        with self._upcast(vae):
            return super().decode(vae, latents)

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Encode images as latents, in float32 where the pipeline does so; see `_upcast`."""
        with self._upcast(vae):
            return super().encode(vae, images)

    @contextmanager
    def _upcast(self, vae: Any) -> Iterator[None]:
        """Context manager in which a float16 VAE is float32 if its config has ``force_upcast``.

        The VAE of Stable Diffusion XL computes values beyond the range of float16.
        """
        is_cast = self.vae["force_upcast"] and vae.dtype == torch.float16
        try:
            if is_cast:
                # The method `to` of diffusers would log a warning at each call.
                nn.Module.to(vae, torch.float32)
            yield
        finally:
            if is_cast:
                nn.Module.to(vae, torch.float16)

    def denormalise(self, latents: Tensor) -> Tensor:
        """Convert latents from the scale of the denoiser to the scale of the VAE.

        If the VAE's config states a mean and a standard deviation for each channel, both are used
        in addition to ``scaling_factor``.
        """
        if not self._standardised:
            return super().denormalise(latents)
        mean, std = self._moments(latents)
        return latents * std / self.vae["scaling_factor"] + mean

    def normalise(self, latents: Tensor) -> Tensor:
        """Convert latents to the denoiser's scale, the inverse of `denormalise`."""
        if not self._standardised:
            return super().normalise(latents)
        mean, std = self._moments(latents)
        return (latents - mean) * self.vae["scaling_factor"] / std

    def check_vae(self) -> None:
        """Check that the pipeline can use the model's VAE.

        ``latents_mean`` and ``latents_std``, if given, must have one number for each channel.
        """
        super().check_vae()
        if self._standardised:
            self.check_moments(self.vae["latent_channels"])

    @property
    def _standardised(self) -> bool:
        """Flag that is True if the VAE's config states mean and standard deviation per channel."""
        return self.vae["latents_mean"] is not None and self.vae["latents_std"] is not None

    def _moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of the latent channels, both (1, channel, 1, 1).

        Args:
            latents: tensor whose dtype and device the results get.
        """
        mean, std = (latents.new_tensor(self.vae[f"latents_{name}"]) for name in ("mean", "std"))
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
