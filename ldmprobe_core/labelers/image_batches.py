"""Functions that labelers share: calls in batches, conversion of images, resizing of maps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def in_batches(
    images: np.ndarray, batch: int, label: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Apply a labeling function to images in batches, to limit its use of memory.

    Args:
        images: (n, y, x, rgb).
        batch: largest number of images in one call.
        label: function from images to labels (n, ...).

    Returns:
        labels of all images, float32 (n, ...).
    """
    return np.concatenate(
        [label(images[start : start + batch]) for start in range(0, len(images), batch)]
    ).astype(np.float32)


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """Convert images (n, y, x, rgb) uint8 to a float tensor (n, rgb, y, x) in 0..1."""
    data = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return data.permute(0, 3, 1, 2).float() / 255


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtract a mean from each channel of images, and divide by a standard deviation.

    Args:
        images: (n, rgb, y, x) in 0..1.
        mean, std: mean and standard deviation of each channel.
    """
    shape = (1, 3, 1, 1)
    centre = torch.tensor(mean, device=images.device).view(shape)
    return (images - centre) / torch.tensor(std, device=images.device).view(shape)


def resized(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    """Resize maps (n, y, x) to a height and width, and convert them to NumPy float32.

    Args:
        maps: maps on any device.
        size: height and width in pixels.
        mode: interpolation of PyTorch, ``bilinear`` or ``bicubic``.
    """
    upsampled = F.interpolate(maps.float()[:, None], size, mode=mode, align_corners=False)
    return upsampled[:, 0].cpu().numpy()


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Mean and standard deviation of each RGB channel over ImageNet, for `normalise`."""
