"""Images through a network in even batches: the same label whatever the neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def in_batches(
    images: np.ndarray, at_once: int, label: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """``label`` of images (n, y, x, rgb), so many at a time."""
    return np.concatenate(
        [label(images[a : a + at_once]) for a in range(0, len(images), at_once)]
    ).astype(np.float32)


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (n, y, x, rgb) to float (n, rgb, y, x) in 0..1."""
    data = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return data.permute(0, 3, 1, 2).float() / 255


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images (n, rgb, y, x) in 0..1, less the mean and over the deviation of each channel."""
    shape = (1, 3, 1, 1)
    centre = torch.tensor(mean, device=images.device).view(shape)
    return (images - centre) / torch.tensor(std, device=images.device).view(shape)


def resized(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    """Maps (n, y, x) to another height and width."""
    grown = F.interpolate(maps.float()[:, None], size, mode=mode, align_corners=False)
    return grown[:, 0].cpu().numpy()


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Channel statistics that networks trained on ImageNet expect."""
