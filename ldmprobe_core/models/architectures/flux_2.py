"""Architecture of Flux 2 and Flux 2 Klein, flow-matching transformers over text and image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import Tensor

from ldmprobe_core.models.architectures.base import Guidance
from ldmprobe_core.models.architectures.flux import Flux
from ldmprobe_core.models.architectures.text_widths import stated_widths


class Flux2(Flux):
    """Flux 2, a transformer over image tokens and the text tokens of a language model.

    Latents are packed into tokens as in Flux.  The guidance scale is an input of the denoiser,
    which is called once per step; the pipeline takes no negative prompt.  The scale of the latents
    is that of a batch normalisation of the VAE, whose statistics are weights, so `encode` and
    `decode` apply it, and `normalise` and `denormalise` change nothing.
    """

    network = Flux2Transformer2DModel
    vae_network = AutoencoderKLFlux2
    joint_block_classes: ClassVar[tuple[str, ...]] = ("Flux2TransformerBlock",)
    takes_negative = False
    _ENCODER_LAYERS: ClassVar[int] = 3
    """Number of layers of the text encoder whose outputs the pipeline concatenates."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # The base class reads these keys, which the config of this VAE class lacks.
        self.vae |= {"scaling_factor": 1.0, "shift_factor": 0.0}

    def text_widths(self, encoders: dict[str, dict[str, Any]]) -> list[tuple[str, int, int]]:
        """Return expected and actual width of the text encoder's concatenated layer outputs."""
        config = encoders.get("text_encoder", {})
        width = config.get("text_config", config).get("hidden_size")
        needed = self.config["joint_attention_dim"]
        return stated_widths([("joint_attention_dim", needed, [width] * self._ENCODER_LAYERS)])

    def uses_guidance(self, negative: str | None) -> bool:
        """Return whether the guidance scale is an input of the denoiser."""
        return bool(self.config["guidance_embeds"])

    def guidance(self, scale: float, negative: str | None) -> Guidance:
        """Return the pattern of denoiser calls: one per step."""
        return Guidance()

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Set a scheduler's timesteps, shifted according to the numbers of tokens and steps."""
        # Import here, because the import takes seconds and only Flux 2 needs it.
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        mu = compute_empirical_mu(self.grid.height * self.grid.width, steps)
        if scheduler.config.get("use_flow_sigmas"):
            scheduler.set_timesteps(steps, mu=mu)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    def dummy_inputs(self) -> dict[str, Any]:
        """Build keyword arguments for a call of Flux 2's transformer on one sample."""
        tokens, axes = self.grid.height * self.grid.width, len(self.config["axes_dims_rope"])
        return {
            "hidden_states": torch.empty(1, tokens, self.config["in_channels"]),
            "timestep": torch.ones(1),
            "guidance": torch.ones(1) if self.config["guidance_embeds"] else None,
            "encoder_hidden_states": torch.empty(1, self._TEXT, self.config["joint_attention_dim"]),
            "img_ids": torch.zeros(tokens, axes),
            "txt_ids": torch.zeros(self._TEXT, axes),
        }

    def as_input(self, latents: Tensor) -> Tensor:
        """Convert tokens (n, token, channel) to a pipeline's input map (n, channel, y, x)."""
        n, _, channels = latents.shape
        return latents.mT.reshape(n, channels, self.grid.height, self.grid.width)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode latents (n, channel, y, x) at the denoiser's scale to images (n, rgb, y, x)."""
        mean, std = self._moments(vae)
        return vae.decode(self.unpack(self.pack(latents.to(vae.dtype)) * std + mean)).sample

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Encode images (n, rgb, y, x) in -1..1 as latents (n, channel, y, x).

        The latents are modes of the VAE's posterior, normalised to the denoiser's scale.
        """
        mean, std = self._moments(vae)
        latents = vae.encode(images.to(vae.dtype)).latent_dist.mode()
        return self.unpack((self.pack(latents) - mean) / std)

    def _moments(self, vae: Any) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each token channel, from the VAE's batch norm."""
        return vae.bn.running_mean, (vae.bn.running_var + self.vae["batch_norm_eps"]).sqrt()


class Flux2Klein(Flux2):
    """Flux 2 Klein, with classifier-free guidance against the empty prompt.

    The pipeline makes two calls per step, conditional, then unconditional.  Checkpoints that were
    distilled, as ``is_distilled`` in ``model_index.json`` says, are called once and have no
    guidance.

    Attributes:
        is_distilled: whether the model was distilled to sample without guidance.
    """

    is_distilled = False

    @classmethod
    def from_folder(cls, pipeline_name: str, folder: Path) -> Self:
        """Build the description of a model; read ``is_distilled`` from its ``model_index.json``."""
        architecture = super().from_folder(pipeline_name, folder)
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        architecture.is_distilled = bool(index.get("is_distilled"))
        return architecture

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> Self:
        """Build the description of a loaded pipeline; read ``is_distilled`` from its config."""
        architecture = super().from_pipeline(pipeline)
        architecture.is_distilled = bool(pipeline.config.get("is_distilled"))
        return architecture

    def from_output(self, vae: Any, latents: Tensor) -> Tensor:
        """Convert a pipeline call's output latents, at the VAE's scale, to normalised tokens."""
        mean, std = self._moments(vae)
        return (self.pack(latents) - mean) / std

    def uses_guidance(self, negative: str | None) -> bool:
        """Return whether the guidance scale affects the images; False for distilled models."""
        return not self.is_distilled

    def guidance(self, scale: float, negative: str | None) -> Guidance:
        """Return the pattern of denoiser calls: two per step under guidance, else one."""
        return Guidance(calls_per_step=2 if scale > 1 and self.uses_guidance(negative) else 1)
