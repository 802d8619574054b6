"""Tabletop UNet and text encoder, trained together on latents and captions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldmprobe_core.tabletop.autoencoder import encode
from ldmprobe_core.tabletop.dataset import Dataset
from ldmprobe_core.tabletop.tokenizer import CAPTION_LENGTH, new_tokenizer
from ldmprobe_core.tabletop.training import Recipe, Trainer, autocast, computes_bfloat16

DENOISER_RECIPE = Recipe(
    samples=1_250_000, batch=256, learning_rate=8e-4, warmup=500, decay=0.5, average=0.998
)
"""Recipe of a new denoiser: five minutes of a GPU, or a day of two CPU cores."""
DENOISER_CONTINUED = Recipe(samples=1_500_000, batch=32, learning_rate=4e-4, average=0.9995)
"""Recipe of further training of a trained denoiser."""

LATENT_SIZE = 16
_CAPTION_DROPOUT = 0.1


@dataclass(frozen=True)
class Objective:
    """Weighting of noise levels and latent channels in the denoiser's training loss.

    Attributes:
        snr_clip: noise levels are weighted by min(1, snr_clip / (1 + SNR)); infinity weights all
            levels alike.
        by_pixels: whether latent channels are weighted by their effect on pixels, see
            `channel_effects`.

    The defaults give straighter edges than a clip at 5 and equal channels: at an SNR of 20 the
    error is still 0.1 of a latent's standard deviation, but a clip at 5 weights it by a quarter,
    and two of the four latent channels have four fifths of the effect on pixels.
    """

    snr_clip: float = 20.0
    by_pixels: bool = True


class Denoiser(nn.Module):
    """UNet and text encoder as one module, for one optimiser and one checkpoint."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CAPTION_LENGTH,
                projection_dim=128,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            in_channels=4,
            out_channels=4,
            block_out_channels=(64, 128, 192),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=4,
            norm_num_groups=16,
        )

    def forward(self, latents: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Predict the velocity of noisy latents (n, channel, y, x) for captions (n, token)."""
        embeddings = self.text_encoder(tokens).last_hidden_state
        return self.unet(latents, timestep, embeddings).sample

    def arrange(self, device: torch.device) -> Denoiser:
        """Move to the device, in the memory format that is faster there, and return self."""
        channels_last = device.type == "cpu" and not computes_bfloat16(device)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.unet.to(memory_format=layout)
        return self.to(device)


def load_denoiser(folder: Path) -> Denoiser:
    """Load UNet and text encoder of a tabletop model folder in float32."""
    model = Denoiser(new_tokenizer())
    model.unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32)
    model.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    return model


def new_pipeline(
    vae: AutoencoderKL, denoiser: Denoiser, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """Pipeline of the given parts (shared, not copied), without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=new_tabletop_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def new_tabletop_scheduler() -> DDIMScheduler:
    """DDIM scheduler with Stable Diffusion's noise schedule and velocity prediction.

    For velocity prediction see Salimans & Ho 2022.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def latent_dataset(
    data: Dataset, vae: AutoencoderKL, folder: Path, device: torch.device
) -> np.ndarray:
    """Latents of every scene and of its mirror image, computed once and stored in ``folder``.

    Captions name neither left nor right, so they are true of the mirror images as well.

    Returns:
        (flip, scene, channel, y, x) float16, memory-mapped.
    """
    path = folder / "latents.npy"
    if not path.exists():
        shape = (2, data.scenes, 4, LATENT_SIZE, LATENT_SIZE)
        unfinished = path.with_suffix(".part")
        out = np.lib.format.open_memmap(unfinished, "w+", dtype=np.float16, shape=shape)
        for start in range(0, data.scenes, 512):
            images = data.rgb[start : start + 512]
            for flip, view in enumerate((images, images[:, :, ::-1])):
                out[flip, start : start + len(images)] = encode(vae, view, device).numpy()
        out.flush()
        unfinished.replace(path)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def channel_effects(vae: AutoencoderKL, latents: Tensor, spread: float = 0.2) -> Tensor:
    """Mean squared change of pixels by white noise in each latent channel.

    Args:
        latents: (n, channel, y, x), decoded without and with noise.
        spread: standard deviation of the noise; that of a latent channel is about 1.

    Returns:
        (channel,), scaled to mean 1.
    """
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(latents[:, 0].shape, generator=generator).to(latents) * spread
    clean = vae.decode(latents).sample
    changes = []
    for channel in range(latents.shape[1]):
        noisy = latents.clone()
        noisy[:, channel] += noise
        changes.append((vae.decode(noisy).sample - clean).square().mean())
    effects = torch.stack(changes)
    return effects / effects.mean()


def velocity_loss(
    predicted: Tensor,
    clean: Tensor,
    noise: Tensor,
    alpha_bar: Tensor,
    snr_clip: float = 5.0,
    channel_weight: Tensor | None = None,
) -> Tensor:
    """Squared error of the velocity, weighted by min(1, snr_clip / (1 + SNR)) and by channel.

    The weight by noise level is min-SNR (Hang et al. 2023, arXiv 2303.09556) for velocities, except
    that it stays 1 towards pure noise, where the layout of an image is decided.

    Args:
        predicted: predicted velocity, (n, channel, y, x).
        clean, noise: latents and noise of the noisy input, (n, channel, y, x).
        alpha_bar: (n,), cumulative product of the schedule at each sample's timestep.
        channel_weight: (channel,), with mean 1; None weights all channels alike.
    """
    a, s = alpha_bar.sqrt()[:, None, None, None], (1 - alpha_bar).sqrt()[:, None, None, None]
    error = (predicted - (a * noise - s * clean)).square().mean((2, 3))
    if channel_weight is not None:
        error = error * channel_weight
    snr = alpha_bar / (1 - alpha_bar)
    weight = (snr_clip / (1 + snr)).clamp(max=1.0)
    return (weight * error.mean(1)).mean()


def train_denoiser(
    data: Dataset,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    folder: Path,
    device: torch.device,
    recipe: Recipe = DENOISER_RECIPE,
    model: Denoiser | None = None,
    objective: Objective = Objective(),
    milestone: Callable[[int, dict[str, Tensor]], None] | None = None,
    time_limit: float = math.inf,
) -> Denoiser:
    """Train and return UNet and text encoder; resumes from a checkpoint in ``folder``.

    Args:
        model: model to train in place; None trains a new one.
        milestone: see `Trainer.fit`.
        time_limit: see `Trainer`.
    """
    model = (model or Denoiser(tokenizer)).arrange(device)
    trainer = Trainer(folder, "denoiser", model, recipe, device, time_limit)
    # All latents are kept on the device (4 KiB per scene), so that no step waits for a transfer.
    latents = torch.from_numpy(np.array(latent_dataset(data, vae, folder, device))).to(device)
    if device.type == "cuda":
        model.unet.compile()
    tokens = tokenize(tokenizer, data.captions()).to(device)
    empty_caption = tokenize(tokenizer, [""])[0].to(device)
    alphas = new_tabletop_scheduler().alphas_cumprod.to(device)
    channels = None
    if objective.by_pixels:
        channels = channel_effects(vae, latents[0, :64].float())

    def loss(batch: np.ndarray, step: int) -> Tensor:
        n = len(batch)
        index = torch.from_numpy(batch)
        if device.type == "cuda":
            index = index.pin_memory().to(device, non_blocking=True)
        clean = latents[torch.randint(2, (n,), device=device), index].float()
        dropped = torch.rand(n, 1, device=device) < _CAPTION_DROPOUT
        captions = torch.where(dropped, empty_caption, tokens[index])
        timestep = torch.randint(len(alphas), (n,), device=device)
        noise = torch.randn_like(clean)
        a = alphas[timestep][:, None, None, None]
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        with autocast(device):
            predicted = model(noisy, timestep, captions)
        return velocity_loss(
            predicted.float(), clean, noise, alphas[timestep], objective.snr_clip, channels
        )

    trainer.fit(len(data.train), loss, milestone)
    return model


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids of captions, (n, CAPTION_LENGTH) int64."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=CAPTION_LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids
