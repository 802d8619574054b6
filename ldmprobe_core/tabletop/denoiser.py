"""The tabletop UNet and text encoder: trained together on latents and captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldmprobe_core.tabletop.autoencoder import encode
from ldmprobe_core.tabletop.dataset import Dataset
from ldmprobe_core.tabletop.tokenizer import CAPTION_LENGTH
from ldmprobe_core.tabletop.training import Recipe, Trainer

RECIPE = Recipe(samples=350_000, batch=32, learning_rate=6e-4)

LATENT_SIZE = 16
_CAPTION_DROPOUT = 0.1
_SNR_CLIP = 5.0


class Denoiser(nn.Module):
    """UNet and text encoder as one module, so that one optimiser and one checkpoint serve both."""

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
        """Predicted velocity of noisy latents (n, channel, y, x) under captions (n, token)."""
        words = self.text_encoder(tokens).last_hidden_state
        return self.unet(latents, timestep, words).sample


def new_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion, with velocity prediction (Salimans & Ho 2022)."""
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
    """Latents of every scene and its mirror image, (flip, scene, channel, y, x) float16, kept on
    disk.  A caption names no side, so it fits the mirror image as well."""
    path = folder / "latents.npy"
    if not path.exists():
        shape = (2, data.scenes, 4, LATENT_SIZE, LATENT_SIZE)
        fresh = path.with_suffix(".part")
        out = np.lib.format.open_memmap(fresh, "w+", dtype=np.float16, shape=shape)
        for start in range(0, data.scenes, 512):
            images = data.rgb[start : start + 512]
            for flip, view in enumerate((images, images[:, :, ::-1])):
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    out[flip, start : start + len(images)] = encode(vae, view, device).numpy()
        out.flush()
        fresh.replace(path)
    return np.load(path, mmap_mode="r")


def velocity_loss(predicted: Tensor, clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Squared error of the velocity, weighted by min(1, 5 / (1 + SNR)).

    The weight is min-SNR-5 of Hang et al. 2023 (arXiv 2303.09556) carried over to velocities,
    except that it never falls off towards pure noise, where a picture's layout is decided.

    Args:
        predicted, clean, noise: (n, channel, y, x).
        alpha_bar: (n,), cumulative product of the schedule at each sample's timestep.
    """
    a, s = alpha_bar.sqrt()[:, None, None, None], (1 - alpha_bar).sqrt()[:, None, None, None]
    target = a * noise - s * clean
    snr = alpha_bar / (1 - alpha_bar)
    weight = (_SNR_CLIP / (1 + snr)).clamp(max=1.0)
    return (weight * (predicted - target).square().mean((1, 2, 3))).mean()


def train_denoiser(
    data: Dataset,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    folder: Path,
    device: torch.device,
    recipe: Recipe = RECIPE,
) -> Denoiser:
    """Train and return UNet and text encoder; resumes from ``folder``."""
    model = Denoiser(tokenizer)
    trainer = Trainer(folder, "denoiser", model, recipe, device)
    latents = latent_dataset(data, vae, folder, device)
    tokens = tokenize(tokenizer, data.captions()).to(device)
    nothing = tokenize(tokenizer, [""])[0].to(device)
    alphas = new_scheduler().alphas_cumprod.to(device)

    def loss(index: np.ndarray, step: int) -> Tensor:
        n = len(index)
        flip = torch.randint(2, (n,)).numpy()
        clean = torch.from_numpy(latents[flip, index].astype(np.float32)).to(device)
        words = tokens[torch.from_numpy(index).to(device)].clone()
        words[torch.rand(n, device=device) < _CAPTION_DROPOUT] = nothing
        timestep = torch.randint(len(alphas), (n,), device=device)
        noise = torch.randn_like(clean)
        a = alphas[timestep][:, None, None, None]
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        with torch.autocast(device.type, dtype=torch.bfloat16):
            predicted = model(noisy, timestep, words)
        return velocity_loss(predicted.float(), clean, noise, alphas[timestep])

    trainer.fit(len(data.train), loss)
    return model


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (n, CAPTION_LENGTH) int64."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=CAPTION_LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids
