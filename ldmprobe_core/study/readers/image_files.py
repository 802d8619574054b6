"""Reader of image files as 8-bit RGB; it refuses files with an undefined brightness range."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.readers.whole_images import lacks_rows, require_whole_jpeg

BACKGROUND = (255, 255, 255)
"""RGB colour over which transparent images are laid: white, as in a browser."""

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
"""Formats that are decoded, recognised by content and not by suffix; JPEG includes MPO."""

MAX_PIXELS = 80_000_000
"""Largest number of pixels of an image; a small file could otherwise fill the memory."""

_DIRECT = {"RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"}
"""Pillow modes that ``convert("RGB")`` handles correctly if nothing is transparent."""


def open_rgb(path: Path) -> Image.Image:
    """Read an image file as 8-bit RGB, rotated by its EXIF orientation.

    16-bit grey is scaled to 8 bits, and transparent images are composed on white (`BACKGROUND`).

    Raises:
        UserError: the file is not an image, is incomplete, damaged or an animation, or has a mode
            whose range of brightness is undefined.
    """
    with _opened(path) as image:
        require_readable_size(path, *image.size)
        frames = getattr(image, "n_frames", 1)
        # MPO files, which cameras write, have several frames; the first one is the photograph.
        if frames > 1 and image.format != "MPO":
            raise UserError(
                f"{path}: an animation of {frames} frames. Fix: save one frame as an image"
            )
        require_intact(path, image.format)
        require_all_pixels(path, image)
        image.load()
        scale_transparency(path, image)
        if image.format in ("JPEG", "MPO"):
            require_whole_jpeg(path, image)
        return _to_rgb(path, ImageOps.exif_transpose(image))


def image_size(path: Path) -> tuple[int, int]:
    """Return an image's width and height in pixels, after rotation by its EXIF orientation.

    Raises:
        UserError: the file is not an image.
    """
    with _opened(path) as image:
        return ImageOps.exif_transpose(image).size


def is_rotated(path: Path) -> bool:
    """Return whether the EXIF orientation of an image rotates or mirrors it.

    Raises:
        UserError: the file is not an image.
    """
    with _opened(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image for the ``with`` block, and convert decoders' errors to `UserError`."""
    with (
        explained_decoding(path, "a complete image"),
        Image.open(path, formats=FORMATS) as image,
    ):
        yield image


@contextmanager
def explained_decoding(path: Path, kind: str) -> Iterator[None]:
    """Convert errors of image decoders in the ``with`` block to a `UserError` with the file's name.

    Args:
        kind: what the file should be, for the message, such as ``a map``.

    Raises:
        UserError: the file is too large, broken, or of another kind.
    """
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise too_large(path) from None
    # For broken files, decoders raise exceptions of many types, even SyntaxError.
    except Exception as error:
        raise UserError(
            f"{path}: not {kind} ({describe_content(path)}; {type(error).__name__}). "
            "Fix: save the file again, or remove it"
        ) from error


_ZERO_TAIL = 64
"""Number of zero bytes at the end of a compressed file that reveal an interrupted copy."""

_JPEG_END = b"\xff\xd9"
"""Marker that ends the data of a JPEG image; some cameras append zeros after it."""


def require_intact(path: Path, file_format: str | None) -> None:
    """Check a file for damage that Pillow ignores, such as zeros from an interrupted copy.

    A copy that was interrupted after its space was reserved ends with zeros.  Pillow stops at such
    zeros in a PNG and leaves the remaining rows black, but each part of a PNG has a checksum.

    Args:
        file_format: format as Pillow names it; only PNG, JPEG, WebP and EXR are examined.

    Raises:
        UserError: the end of a JPEG, WebP or EXR file was not written, or a PNG lacks rows.
        SyntaxError: a checksum of a PNG is wrong; `explained_decoding` explains it.
    """
    if file_format == "PNG":
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()
        if lacks_rows(path.read_bytes()):
            raise UserError(
                f"{path}: its data ends before its last row, so part of the image would be black. "
                "Fix: save it again, or remove it"
            )
    elif file_format in ("JPEG", "MPO", "WEBP", "EXR"):
        data = path.read_bytes()
        unwritten = not any(data[-_ZERO_TAIL:])
        padded = file_format in ("JPEG", "MPO") and data.rstrip(b"\0").endswith(_JPEG_END)
        if unwritten and not padded:
            raise UserError(
                f"{path}: the end of the file is all zeros, so its copy was interrupted. Fix: "
                "copy it again, or remove it"
            )


def require_all_pixels(path: Path, image: Any) -> None:
    """Check that the data of a TIFF covers all pixels; Pillow sets uncovered pixels to 0.

    Raises:
        UserError: a part of the image has no data.
    """
    if image.format != "TIFF":
        return
    covered = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in {part[1] for part in image.tile})
    if covered < image.width * image.height:
        raise UserError(
            f"{path}: it has data for {covered} of {image.width * image.height} pixels. Fix: save "
            "it again, or remove it"
        )


def require_readable_size(path: Path, width: int, height: int) -> None:
    """Raise `UserError` if an image has more than `MAX_PIXELS` pixels."""
    if width * height > MAX_PIXELS:
        raise too_large(path, f"{width} x {height}")


def too_large(path: Path, size: str = "its") -> UserError:
    """Build the error for an image of more than `MAX_PIXELS` pixels."""
    return UserError(
        f"{path}: {size} pixels are more than {MAX_PIXELS // 1_000_000} million. Fix: scale it "
        "down, or remove it"
    )


_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WebP",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\x93NUMPY": "NPY",
    b"v/1\x01": "EXR",
    b"PK": "a ZIP archive",
    b"%PDF": "PDF",
    b"<": "markup",
    b"version https://git-lfs": "a Git LFS pointer",
}


def describe_content(path: Path) -> str:
    """Describe a file by the format that its first bytes show, and its size: ``JPEG, 9 bytes``."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
        size = path.stat().st_size
    except OSError:
        return "cannot be read"
    kind = next((name for mark, name in _SIGNATURES.items() if start.startswith(mark)), None)
    return f"{kind}, {size} bytes" if kind else f"{size} bytes"


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB; transparent pixels get the colour `BACKGROUND`."""
    mode = image.mode
    if mode.startswith("I"):
        return _scaled_grey(path, image)
    if mode == "RGB" and "transparency" in image.info and _png_bits(path) == 16:
        # Pillow keeps 8 bits of a colour, so that more colours than the transparent one match it.
        raise UserError(
            f"{path}: one colour of 16 bits is transparent ({image.info['transparency']}). Fix: "
            "save the image with an alpha channel, or with 8 bits"
        )
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        below = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        return Image.alpha_composite(below, rgba).convert("RGB")
    if mode in _DIRECT:
        return image.convert("RGB")
    raise UserError(
        f"{path}: mode {mode} has no defined range of brightness. Fix: save the image as 8-bit RGB"
    )


def _scaled_grey(path: Path, image: Image.Image) -> Image.Image:
    """Convert grey of 16 bits to 8-bit RGB; pixels of the transparent value get `BACKGROUND`."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(
            f"{path}: grey values {values.min()} to {values.max()} do not fit 16 bits. Fix: "
            "save 8 or 16 bits"
        )
    grey = np.rint(values.astype(np.float64) / 257).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    if "transparency" in image.info:
        rgb[values == image.info["transparency"]] = BACKGROUND
    return Image.fromarray(rgb)


def scale_transparency(path: Path, image: Image.Image) -> None:
    """Scale the transparent value of a grey PNG of 2 or 4 bits to the 8 bits of its pixels.

    Pillow scales the pixels alone, so that the transparent value names other pixels, or none.
    """
    highest = 2 ** (_png_bits(path) or 8) - 1
    value = image.info.get("transparency")
    if image.mode == "L" and isinstance(value, int) and value <= highest:
        image.info["transparency"] = value * 255 // highest


def _png_bits(path: Path) -> int | None:
    """Return the bits per channel of a PNG, from its first chunk; None for other files."""
    with path.open("rb") as file:
        start = file.read(25)
    return start[24] if start.startswith(b"\x89PNG") else None
