"""Tabletop VAE: a small `diffusers.AutoencoderKL` trained on renderings, with whitened latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from ldmprobe_core.tabletop import IMAGE_SIZE
from ldmprobe_core.tabletop.dataset import Dataset
from ldmprobe_core.tabletop.training import Recipe, Trainer, autocast, to_images, to_unit

AUTOENCODER_RECIPE = Recipe(
    samples=44_000, batch=16, learning_rate=1e-3, average=0.995, weight_decay=0.0
)

_KL_WEIGHT = 1e-3
_OBJECT_WEIGHT = 4.0


def new_autoencoder() -> AutoencoderKL:
    """Untrained VAE from 64 x 64 pixels to 16 x 16 latents of four channels."""
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """Load the VAE of a model folder in float32, with frozen parameters."""
    model = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    return model.eval().requires_grad_(False)


def reconstruction_loss(output: Tensor, image: Tensor, foreground: Tensor) -> Tensor:
    """Sum of L1, squared, gradient and chroma errors, with more weight on the object.

    Args:
        output, image: (n, rgb, y, x) in -1..1.
        foreground: (n, 1, y, x), fraction of each pixel that the object covers.
    """
    dilated = F.max_pool2d(foreground, 3, stride=1, padding=1)  # the object with its outline
    weight = 1 + _OBJECT_WEIGHT * dilated
    weight = weight / weight.mean()
    error = output - image
    chroma = error - error.mean(1, keepdim=True)
    across = error.diff(dim=3).abs() * weight[..., 1:]
    down = error.diff(dim=2).abs() * weight[..., 1:, :]
    pointwise = error.abs() + 2 * error.square() + chroma.abs()
    return (weight * pointwise).mean() + 0.5 * (across.mean() + down.mean())


def train_autoencoder(
    data: Dataset, folder: Path, device: torch.device, recipe: Recipe = AUTOENCODER_RECIPE
) -> AutoencoderKL:
    """Train the VAE, whiten its latents and return it; resumes from a checkpoint in ``folder``."""
    model = new_autoencoder()
    trainer = Trainer(folder, "autoencoder", model, recipe, device)

    def loss(index: np.ndarray, step: int) -> Tensor:
        image = to_unit(data.rgb[np.sort(index)], device)
        mask = torch.from_numpy(data.foreground[np.sort(index)]).to(device)[:, None].float() / 255
        if step % 2:
            image, mask = image.flip(3), mask.flip(3)
        with autocast(device):
            posterior = model.encode(image).latent_dist
            output = model.decode(posterior.sample()).sample
        error = reconstruction_loss(output.float(), image, mask)
        return error + _KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    trainer.fit(len(data.train), loss)
    index = np.linspace(0, len(data.train) - 1, 3000).astype(int)
    whiten(model, encode(model, data.rgb[index], device))
    return model


@torch.no_grad()
def encode(model: AutoencoderKL, images: np.ndarray, device: torch.device) -> Tensor:
    """Encode images uint8 (n, y, x, rgb) to posterior means (n, channel, y, x) float32."""
    parts = [
        model.encode(to_unit(images[a : a + 128], device)).latent_dist.mean.float().cpu()
        for a in range(0, len(images), 128)
    ]
    return torch.cat(parts)


@torch.no_grad()
def decode(model: AutoencoderKL, latents: Tensor, device: torch.device) -> np.ndarray:
    """Decode latents (n, channel, y, x) to images uint8 (n, y, x, rgb)."""
    parts = [
        to_images(model.decode(latents[a : a + 128].float().to(device)).sample)
        for a in range(0, len(latents), 128)
    ]
    return np.concatenate(parts)


@torch.no_grad()
def whiten(model: AutoencoderKL, latents: Tensor) -> None:
    """Fold a whitening of the latents into the VAE's 1 x 1 convolutions, in place.

    The channels of a small VAE are correlated.  A diffusion model's noise then hides all but their
    common component until the last steps.  After z = C^(-1/2) (m - mean), with C and mean of the
    posterior means m, all channels have mean 0 and variance 1 and are uncorrelated.  The posterior
    collapses to its mean: the log-variance is set to its lower bound.

    Args:
        latents: posterior means of the model before whitening, (n, channel, y, x).
    """
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).double()
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    inverse = vectors @ torch.diag(values.sqrt()) @ vectors.T
    channels = len(mean)

    inner, outer = model.quant_conv, model.post_quant_conv
    weight, bias = inner.weight.double().cpu(), inner.bias.double().cpu()
    new_weight = torch.zeros_like(weight)
    new_weight[:channels, :, 0, 0] = whitening @ weight[:channels, :, 0, 0]
    new_bias = torch.full_like(bias, -30.0)
    new_bias[:channels] = whitening @ (bias[:channels] - mean)
    inner.weight.copy_(new_weight)
    inner.bias.copy_(new_bias)

    weight, bias = outer.weight.double().cpu(), outer.bias.double().cpu()
    outer.bias.copy_(bias + weight[:, :, 0, 0] @ mean)
    outer.weight.copy_((weight[:, :, 0, 0] @ inverse)[:, :, None, None])
