"""Training the labelers on the renderer's exact maps: one map network, two classifiers.

Half of each batch are renders, half their VAE reconstructions, since the pictures to be labeled
come out of the VAE.  The second classifier, the *judge*, differs in width, seed and data order: it
scores generated images without having taken part in a study.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from ldmprobe_core.tabletop.autoencoder import decode
from ldmprobe_core.tabletop.dataset import Dataset
from ldmprobe_core.tabletop.networks import ClassNetwork, MapNetwork
from ldmprobe_core.tabletop.scenes import CATEGORIES
from ldmprobe_core.tabletop.training import Recipe, Trainer, autocast, to_unit

MAP_RECIPE = Recipe(samples=96_000, batch=32, learning_rate=2e-3, average=0.995, seed=11)
CLASS_RECIPE = Recipe(samples=80_000, batch=32, learning_rate=1.5e-3, average=0.995, seed=12)
JUDGE_RECIPE = Recipe(samples=80_000, batch=32, learning_rate=1.5e-3, average=0.995, seed=13)


RECONSTRUCTED = 16_000
"""Scenes whose reconstructions are trained on: the first so many."""


def reconstructions(
    data: Dataset, vae: AutoencoderKL, latents: np.ndarray, folder: Path, device: torch.device
) -> np.ndarray:
    """VAE reconstructions (scene, y, x, rgb) uint8 of the first `RECONSTRUCTED` scenes, on disk."""
    path = folder / "reconstructions.npy"
    count = min(RECONSTRUCTED, len(data.train))
    if not path.exists():
        fresh = path.with_suffix(".part")
        shape = (count, *data.rgb.shape[1:])
        out = np.lib.format.open_memmap(fresh, "w+", dtype=np.uint8, shape=shape)
        for a in range(0, count, 512):
            part = torch.from_numpy(latents[0, a : min(a + 512, count)].astype(np.float32))
            with autocast(device):
                out[a : a + len(part)] = decode(vae, part, device)
        out.flush()
        fresh.replace(path)
    return np.load(path, mmap_mode="r")


class _Pictures:
    """Batches of pictures, half of them reconstructions, mirrored at every other step."""

    def __init__(self, data: Dataset, rebuilt: np.ndarray, device: torch.device) -> None:
        self.data, self.rebuilt, self.device = data, rebuilt, device

    def batch(self, index: np.ndarray, step: int) -> tuple[np.ndarray, Tensor]:
        half = len(index) // 2
        index = np.concatenate([index[:half], index[half:] % len(self.rebuilt)])
        images = np.stack(
            [self.data.rgb[i] for i in index[:half]] + [self.rebuilt[i] for i in index[half:]]
        )
        tensor = to_unit(images, self.device)
        # A little grain: generated pictures are never as clean as renders.
        tensor = tensor + 0.03 * torch.rand(len(index), 1, 1, 1, device=self.device) * (
            torch.randn_like(tensor)
        )
        return index, tensor.flip(3) if step % 2 else tensor


def map_loss(output: Tensor, mask: Tensor, depth: Tensor, shading: Tensor) -> Tensor:
    """Cross-entropy + Dice for the mask, L1 of value and gradient for depth and shading.

    Args:
        output: (n, map, y, x), raw.
        mask, depth, shading: (n, y, x).
    """
    logit = output[:, 0]
    share = torch.sigmoid(logit)
    overlap = 2 * (share * mask).sum((1, 2)) + 1
    dice = 1 - overlap / (share.sum((1, 2)) + mask.sum((1, 2)) + 1)
    total = F.binary_cross_entropy_with_logits(logit, mask) + 0.2 * dice.mean()
    for value, truth in ((output[:, 1], depth), (output[:, 2], shading)):
        error = value - truth
        total = total + 4 * error.abs().mean()
        total = total + 2 * (error.diff(dim=1).abs().mean() + error.diff(dim=2).abs().mean())
    return total


def train_maps(
    data: Dataset,
    rebuilt: np.ndarray,
    folder: Path,
    device: torch.device,
    recipe: Recipe = MAP_RECIPE,
) -> MapNetwork:
    """Train and return the map network; resumes from ``folder``."""
    torch.manual_seed(3)
    model = MapNetwork()
    trainer = Trainer(folder, "maps", model, recipe, device)
    pictures = _Pictures(data, rebuilt, device)

    def loss(index: np.ndarray, step: int) -> Tensor:
        index, images = pictures.batch(index, step)
        truth = np.stack(
            [
                np.stack([data.foreground[i] / np.float32(255) for i in index]),
                np.stack([data.depth[i].astype(np.float32) for i in index]),
                np.stack([data.shading[i] / np.float32(255) for i in index]),
            ]
        )
        maps = torch.from_numpy(truth).to(device)
        maps = maps.flip(3) if step % 2 else maps
        with autocast(device):
            output = model(images)
        return map_loss(output.float(), *maps)

    trainer.fit(len(data.train), loss)
    return model


def train_classifier(
    name: str,
    widths: tuple[int, int, int, int] | None,
    data: Dataset,
    rebuilt: np.ndarray,
    folder: Path,
    device: torch.device,
    recipe: Recipe,
) -> ClassNetwork:
    """Train and return a classifier over `CATEGORIES`; resumes from ``folder``."""
    torch.manual_seed(recipe.seed)
    model = ClassNetwork(len(CATEGORIES), widths) if widths else ClassNetwork(len(CATEGORIES))
    trainer = Trainer(folder, name, model, recipe, device)
    pictures = _Pictures(data, rebuilt, device)

    def loss(index: np.ndarray, step: int) -> Tensor:
        index, images = pictures.batch(index, step)
        truth = torch.from_numpy(data.category[np.asarray(index)].astype(np.int64)).to(device)
        with autocast(device):
            output = model(images)
        return F.cross_entropy(output.float(), truth, label_smoothing=0.02)

    trainer.fit(len(data.train), loss)
    return model
