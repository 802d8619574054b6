"""Reader of image files, which converts every mode with a defined range to 8-bit RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ldmprobe_core.errors import UserError

BACKGROUND = (255, 255, 255)
"""Colour behind transparent pixels, as a browser shows them; their own RGB values are arbitrary."""

_DIRECT = {"RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"}
"""Modes that Pillow converts to RGB correctly if the image has no transparency."""


def open_rgb(path: Path) -> Image.Image:
    """Read an image file as 8-bit RGB, rotated as its EXIF orientation says.

    16-bit grey is scaled to 8 bits; transparent pixels are composed on white (`BACKGROUND`).

    Raises:
        UserError: the file is not an image, incomplete, an animation, or of a mode without a
            defined range.
    """
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UserError(
                    f"{path}: an animation of {image.n_frames} frames. Fix: save one frame"  # type: ignore[attr-defined]
                )
            image.load()
            return _to_rgb(path, ImageOps.exif_transpose(image))
    except (
        OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError, TypeError,
        KeyError, IndexError, NotImplementedError, ZeroDivisionError,
        UnidentifiedImageError, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        # Pillow's decoders raise all of these for broken files.
        raise UserError(
            f"{path}: not a complete image ({type(error).__name__}). Fix: save it again, or "
            "remove it"
        ) from error


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        below = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        return Image.alpha_composite(below, rgba).convert("RGB")
    if mode in _DIRECT:
        return image.convert("RGB")
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(
                f"{path}: grey values {values.min()} to {values.max()}. Fix: save 8 or 16 bits"
            )
        grey = np.rint(values.astype(np.float64) / 257).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    raise UserError(
        f"{path}: mode {mode} has no defined range of brightness. Fix: save it as 8-bit RGB"
    )
