"""Architecture of Qwen-Image, a transformer with joint attention over text and image tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import Tensor

from ldmprobe_core.models.architectures.flow_matching import dynamic_shift
from ldmprobe_core.models.architectures.flux import Flux
from ldmprobe_core.models.architectures.text_widths import stated_widths


class QwenImage(Flux):
    """Qwen-Image, whose transformer blocks return text tokens and image tokens.

    Latents are packed into tokens as in Flux.  Classifier-free guidance needs a negative prompt:
    the pipeline then makes two calls per step, conditional, then unconditional.  The autoencoder is
    one of videos, whose layers have a time axis and are not probed.
    """

    network = QwenImageTransformer2DModel
    vae_network = AutoencoderKLQwenImage
    presets: ClassVar = {
        "self-attention": ("transformer_blocks.*.attn",),
        "blocks": ("transformer_blocks.[0-9]", "transformer_blocks.[0-9][0-9]"),
    }
    joint_block_classes: ClassVar[tuple[str, ...]] = ("QwenImageTransformerBlock",)
    probes_vae = False
    size_multiple = 16
    _SIDE: ClassVar[int] = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # The base class reads these keys, which the config of this VAE class lacks.
        channels = self.vae["z_dim"]
        self.vae |= {"latent_channels": channels, "scaling_factor": 1.0, "shift_factor": 0.0}

    @property
    def reduction(self) -> int:
        """VAE downsampling factor: image pixels per latent pixel along each side, such as 8."""
        return int(2 ** len(self.vae["temperal_downsample"]))

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of the latents, 128 each if no config states a size.

        No config of the model states an image size, because it accepts any.  The key
        ``sample_size`` may be added to the transformer's ``config.json``.
        """
        side = int(self.config.get("sample_size") or self._SIDE)
        return side, side

    def text_widths(self, encoders: dict[str, dict[str, Any]]) -> list[tuple[str, int, int]]:
        """Return expected and actual width of the language model's token embeddings."""
        width = encoders.get("text_encoder", {}).get("text_config", {}).get("hidden_size")
        return stated_widths([("joint_attention_dim", self.config["joint_attention_dim"], [width])])

    def arguments(self, scale: float, negative: list[str] | None) -> dict[str, Any]:
        """Return the keyword arguments of the pipeline's call that set guidance and image size."""
        arguments = super().arguments(scale, negative)
        del arguments["guidance_scale"]
        return arguments

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Set a scheduler's timesteps, with a shift that depends on the number of image tokens."""
        mu = dynamic_shift(scheduler, self.grid, default_max_shift=1.15)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    def dummy_inputs(self) -> dict[str, Any]:
        """Build keyword arguments for a call of Qwen-Image's transformer on one sample."""
        rows, columns = self.grid.height, self.grid.width
        width = self.config["joint_attention_dim"]
        call = {
            "hidden_states": torch.empty(1, rows * columns, self.config["in_channels"]),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.empty(1, self._TEXT, width),
            "img_shapes": [[(1, rows, columns)]],
        }
        if self.config["guidance_embeds"]:
            call["guidance"] = torch.ones(1)
        return call

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode latents (n, channel, y, x) with the video VAE, each as a video of one frame."""
        return vae.decode(self.denormalise(latents.to(vae.dtype))[:, :, None]).sample[:, :, 0]

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Encode images (n, rgb, y, x) in -1..1 with the video VAE, each as a one-frame video."""
        posterior = vae.encode(images.to(vae.dtype)[:, :, None]).latent_dist
        return self.normalise(posterior.mode()[:, :, 0])

    def denormalise(self, latents: Tensor) -> Tensor:
        """Convert latents to the VAE's scale, using each channel's mean and standard deviation."""
        mean, std = self._moments(latents)
        return latents / (1 / std) + mean

    def normalise(self, latents: Tensor) -> Tensor:
        """Convert latents to the denoiser's scale, the inverse of `denormalise`."""
        mean, std = self._moments(latents)
        return (latents - mean) / std

    def check_vae(self) -> None:
        """Check that the VAE's config has a mean and a nonzero standard deviation per channel."""
        super().check_vae()
        self.check_moments(self.vae["z_dim"])

    def _moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latent channels, both (1, channel, 1, 1)."""
        mean, std = (latents.new_tensor(self.vae[f"latents_{name}"]) for name in ("mean", "std"))
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
