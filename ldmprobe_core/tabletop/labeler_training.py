"""Training of the labelers on the renderer's ground-truth maps: a map network and two classifiers.

Half of each batch are renderings, half are VAE reconstructions, because the images to be labeled
are decoded by the VAE.  The second classifier, the *judge*, differs in width, seed and data order.
No study uses it, so it is an independent measure of generated images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from ldmprobe_core.labelers.tabletop_networks import ClassNetwork, MapNetwork
from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.tabletop.autoencoder import decode
from ldmprobe_core.tabletop.dataset import Dataset
from ldmprobe_core.tabletop.training import Recipe, Trainer, autocast, computes_bfloat16, to_unit

MAP_RECIPE = Recipe(samples=96_000, batch=32, learning_rate=2e-3, average=0.995, seed=11)
MAP_CONTINUED = Recipe(samples=200_000, batch=32, learning_rate=1e-3, average=0.995, seed=14)
"""Recipe of further training of a trained map network."""
CLASS_RECIPE = Recipe(samples=80_000, batch=32, learning_rate=1.5e-3, average=0.995, seed=12)
JUDGE_RECIPE = Recipe(samples=80_000, batch=32, learning_rate=1.5e-3, average=0.995, seed=13)


RECONSTRUCTED = 16_000
"""Number of scenes, the first ones, whose reconstructions are used in training."""


def reconstructions(
    data: Dataset, vae: AutoencoderKL, latents: np.ndarray, folder: Path, device: torch.device
) -> np.ndarray:
    """VAE reconstructions of the first `RECONSTRUCTED` scenes, computed once, kept in ``folder``.

    Returns:
        (scene, y, x, rgb) uint8, memory-mapped.
    """
    path = folder / "reconstructions.npy"
    count = min(RECONSTRUCTED, len(data.train))
    if not path.exists():
        unfinished = path.with_suffix(".part")
        shape = (count, *data.rgb.shape[1:])
        out = np.lib.format.open_memmap(unfinished, "w+", dtype=np.uint8, shape=shape)
        for a in range(0, count, 512):
            chunk = torch.from_numpy(latents[0, a : min(a + 512, count)].astype(np.float32))
            with autocast(device):
                out[a : a + len(chunk)] = decode(vae, chunk, device)
        out.flush()
        unfinished.replace(path)
    return np.load(path, mmap_mode="r")


class _ImageBatches:
    """Training batches: half renderings, half reconstructions, mirrored at every other step."""

    def __init__(self, data: Dataset, rebuilt: np.ndarray, device: torch.device) -> None:
        self.data, self.rebuilt, self.device = data, rebuilt, device

    def batch(self, index: np.ndarray, step: int) -> tuple[np.ndarray, Tensor]:
        """Return the scenes' indices and their images with noise, (n, rgb, y, x) in -1..1."""
        half = len(index) // 2
        index = np.concatenate([index[:half], index[half:] % len(self.rebuilt)])
        images = np.stack(
            [self.data.rgb[i] for i in index[:half]] + [self.rebuilt[i] for i in index[half:]]
        )
        tensor = to_unit(images, self.device)
        # Noise makes labelers robust to generated images, which are less clean than renderings.
        tensor = tensor + 0.03 * torch.rand(len(index), 1, 1, 1, device=self.device) * (
            torch.randn_like(tensor)
        )
        return index, tensor.flip(3) if step % 2 else tensor


def map_loss(
    output: Tensor, mask: Tensor, depth: Tensor, shading: Tensor, normal: Tensor
) -> Tensor:
    """Sum of the losses of all maps.

    The losses are cross-entropy and Dice for the mask, L1 of value and gradient for depth and
    shading, `relief_loss` for depth inside the object, and `normal_loss` for normals, over the
    image and again over the object.

    Args:
        output: raw network output, (n, map, y, x).
        mask: covered fraction of each pixel, (n, y, x).
        depth, shading: (n, y, x).
        normal: (n, axis, y, x), unit vectors, or zero in the sky.
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
    inside = (mask > 0.5).float()
    total = total + 0.5 * relief_loss(output[:, 1], depth, inside)
    everywhere = torch.ones_like(mask)
    for weight, region in ((2.0, everywhere), (1.0, inside)):
        total = total + weight * normal_loss(output[:, 3:], normal, region)
    return total


def relief_loss(value: Tensor, truth: Tensor, inside: Tensor) -> Tensor:
    """Mean absolute error of the object's relief (depth minus its mean), in standard deviations.

    It makes up for the error over the whole image, in which an object's relief hardly counts: the
    relief is a few hundredths of the depth range from object to wall.

    Args:
        value, truth: log depth, (n, y, x).
        inside: (n, y, x), 1 on the object, 0 elsewhere; an image without an object contributes 0.
    """
    area = inside.sum((1, 2)).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return (values * inside).sum((1, 2)) / area

    def centred(values: Tensor) -> Tensor:
        return values - mean(values)[:, None, None]

    spread = mean(centred(truth).square()).sqrt().clamp(min=0.01)
    return (mean((centred(value) - centred(truth)).abs()) / spread).mean()


def normal_loss(vectors: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """Mean over a region of 1 - cosine of the angle between predicted and true normals.

    Args:
        vectors: predicted normals of any length, (n, axis, y, x).
        truth: true normals, (n, axis, y, x), of length 1, or 0 in pixels to ignore.
        region: (n, y, x), 1 in pixels to include, 0 elsewhere.
    """
    region = region * (truth.square().sum(1) > 0.5)
    cosine = F.cosine_similarity(vectors, truth, dim=1)
    return ((1 - cosine) * region).sum() / region.sum().clamp(min=1)


def train_maps(
    data: Dataset,
    rebuilt: np.ndarray,
    folder: Path,
    device: torch.device,
    recipe: Recipe = MAP_RECIPE,
    begin: MapNetwork | None = None,
) -> MapNetwork:
    """Train and return the map network; resumes from a checkpoint in ``folder``.

    Args:
        rebuilt: reconstructions of the first training scenes, (scene, y, x, rgb) uint8.
        begin: trained network, with or without normals, from whose weights to start.
    """
    torch.manual_seed(3)
    model = MapNetwork()
    if begin is not None:
        model.load_fewer(begin.state_dict())
    if device.type == "cpu" and not computes_bfloat16(device):
        model.to(
            memory_format=torch.channels_last
        )  # this memory format is faster for convolutions in float32
    trainer = Trainer(folder, "maps", model, recipe, device)
    batches = _ImageBatches(data, rebuilt, device)

    def loss(index: np.ndarray, step: int) -> Tensor:
        index, images = batches.batch(index, step)
        truth = np.stack(
            [
                np.stack([data.foreground[i] / np.float32(255) for i in index]),
                np.stack([data.depth[i].astype(np.float32) for i in index]),
                np.stack([data.shading[i] / np.float32(255) for i in index]),
            ]
        )
        maps = torch.from_numpy(truth).to(device)
        stored = np.stack([data.normal[i] for i in index])
        normal = F.normalize(torch.from_numpy(stored).to(device).float().permute(0, 3, 1, 2), dim=1)
        if step % 2:
            maps, normal = maps.flip(3), mirrored(normal)
        with autocast(device):
            output = model(images)
        return map_loss(output.float(), maps[0], maps[1], maps[2], normal)

    trainer.fit(len(data.train), loss)
    return model


def mirrored(normal: Tensor) -> Tensor:
    """Normals (n, axis, y, x) of the mirror image: pixels flipped, and x components negated."""
    sign = torch.tensor([-1.0, 1.0, 1.0], device=normal.device)
    return normal.flip(3) * sign[:, None, None]


def train_classifier(
    name: str,
    widths: tuple[int, int, int, int] | None,
    data: Dataset,
    rebuilt: np.ndarray,
    folder: Path,
    device: torch.device,
    recipe: Recipe,
) -> ClassNetwork:
    """Train and return a classifier of `CATEGORIES`; resumes from a checkpoint in ``folder``."""
    torch.manual_seed(recipe.seed)
    model = ClassNetwork(len(CATEGORIES), widths) if widths else ClassNetwork(len(CATEGORIES))
    trainer = Trainer(folder, name, model, recipe, device)
    batches = _ImageBatches(data, rebuilt, device)

    def loss(index: np.ndarray, step: int) -> Tensor:
        index, images = batches.batch(index, step)
        truth = torch.from_numpy(data.category[np.asarray(index)].astype(np.int64)).to(device)
        with autocast(device):
            output = model(images)
        return F.cross_entropy(output.float(), truth, label_smoothing=0.02)

    trainer.fit(len(data.train), loss)
    return model
