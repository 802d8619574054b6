"""Labeler of edges by the gradient of the luminance, a filter without weights."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_gradient_magnitude

_SCALE = 1 / 64
"""Standard deviation of the Gaussian blur, relative to the longer image side."""

_CONTRAST = 8.0
"""Least normalised gradient of an edge, in grey levels."""


def gradient_edges(images: np.ndarray) -> np.ndarray:
    """Find edges where the blurred luminance changes by several grey levels.

    The gradient is multiplied by the standard deviation of the blur, so that it does not depend on
    the resolution of an image (Lindeberg 1998).  Outlines of objects, texture and the borders of
    shadows are edges alike.

    Args:
        images: (n, y, x, rgb) uint8.

    Returns:
        masks (n, y, x) bool, True on edges.
    """
    # These are the weights of encoded red, green and blue in the luma of ITU-R BT.601.
    luma = images @ np.array([0.299, 0.587, 0.114])
    scale = max(images.shape[1:3]) * _SCALE
    gradients = [gaussian_gradient_magnitude(image, scale, mode="nearest") for image in luma]
    return scale * np.stack(gradients) > _CONTRAST


gradient_edges.units = "1 on edges of the luminance, else 0"  # type: ignore[attr-defined]
