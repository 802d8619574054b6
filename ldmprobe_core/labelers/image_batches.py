"""Batches of images through a network, and conversions between images and tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def in_batches(
    images: np.ndarray, batch: int, label: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Apply ``label`` to images (n, y, x, rgb), ``batch`` at a time; float32 (n, ...)."""
    return np.concatenate(
        [label(images[start : start + batch]) for start in range(0, len(images), batch)]
    ).astype(np.float32)


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """Convert images (n, y, x, rgb) uint8 to a float tensor (n, rgb, y, x) in 0..1."""
    data = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return data.permute(0, 3, 1, 2).float() / 255


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Standardise images (n, rgb, y, x) in 0..1 by the mean and deviation of each channel."""
    shape = (1, 3, 1, 1)
    centre = torch.tensor(mean, device=images.device).view(shape)
    return (images - centre) / torch.tensor(std, device=images.device).view(shape)


def resized(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    """Resize maps (n, y, x) to another height and width."""
    upsampled = F.interpolate(maps.float()[:, None], size, mode=mode, align_corners=False)
    return upsampled[:, 0].cpu().numpy()


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Channel statistics that networks trained on ImageNet expect."""
