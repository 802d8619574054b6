"""Reader of maps in NPY, PNG, TIFF and EXR files, which refuses ambiguous values."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.properties import PROPERTIES, MapFormat, property_of
from ldmprobe_core.study.readers.image_files import (
    explained_decoding,
    require_all_pixels,
    require_intact,
    require_readable_size,
    scale_transparency,
)

MAP_SUFFIXES = (".npy", ".png", ".tif", ".tiff", ".exr")
"""Suffixes of file names that mark map files, in lowercase."""
_MAP_WORDS = (
    "mask", "matte", "alpha", "segmentation", "label", "labels", "normals", "disparity",
    "depthmap", "albedo", "reflectance",
)  # fmt: skip
"""Usual names of maps, beside those of properties."""

_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
_ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}
_FULL_LEVELS = (1, 255, 65535)
"""Values that are read as foreground in a mask whose pixels all have this value."""
_NODATA = 42113
"""Tag of TIFF files in which GDAL states the value of pixels that were not measured."""
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_MAX_NAMED = 6
"""Largest number of distinct mask values that one message lists."""


def map_words(props: Collection[str]) -> set[str]:
    """Return the words that name a map in file names: properties, vectors and usual names."""
    vectors = [one.component.vector for one in PROPERTIES.values() if one.component]
    return {*props, *_MAP_WORDS, *PROPERTIES, *vectors}


@dataclass(frozen=True)
class LoadedMap:
    """Numbers in a map file, their data type, and the value that means foreground in a mask.

    Attributes:
        values: (y, x) float64; 0 or 1 in a mask; NaN for pixels that were not measured.
        encoding: type of the stored numbers, such as ``16-bit integers``; scalar maps of different
            encodings have different units.
        level: number that means foreground in a mask; None for other maps and empty masks.
    """

    values: np.ndarray
    encoding: str
    level: float | None = None


def load_map(path: Path, prop: str, missing: float | None = None) -> LoadedMap:
    """Read a map file without resizing it.

    Args:
        prop: name of the property, whose `MapFormat` gives the allowed values.
        missing: value that marks pixels that were not measured, in the file's type of numbers, like
            NaN and the value that a TIFF file states itself (GDAL_NODATA); None if only those do.

    Raises:
        UserError: the file is not a complete map, its mode or channels have no meaning for the
            property, its values are out of range, or no pixel is measured.
    """
    record = property_of(prop)
    stored = _decoded(path, record.map_format)
    encoding = _encoding(stored.dtype)
    if encoding == "bits" and not record.is_mask:
        raise UserError(
            f"{path}: boolean values are a mask, not {prop}. Fix: save 8 or 16 bits, or floats"
        )
    values = stored.astype(np.float64)
    for mark in (missing, _declared_missing(path)):
        if mark is not None:
            values[stored == _as_stored(mark, stored.dtype)] = np.nan
    if np.isinf(values).any() or (np.abs(values) > np.finfo(np.float32).max).any():
        raise UserError(
            f"{path}: some values are infinite, or too large for float32. Fix: replace them by "
            "NaN, which stands for pixels that were not measured"
        )
    measured = values[~np.isnan(values)]
    if not measured.size:
        raise UserError(
            f"{path}: no pixel is measured, since all are NaN or equal images.missing.{prop}. "
            "Fix: remove the image, or correct the map"
        )
    level = None
    if record.map_format.two_levels:
        level = _mask_level(path, prop, measured)
        values = np.where(np.isnan(values), np.nan, values != 0)
    minimum = record.map_format.minimum
    if minimum is not None and measured.min() < minimum:
        raise UserError(
            f"{path}: {prop} is below {minimum:g} (down to {measured.min():g}). Fix: correct the "
            f"map, or give images.missing.{prop} if a value stands for pixels not measured"
        )
    return LoadedMap(values, encoding, level)


def _as_stored(value: float, dtype: np.dtype) -> Any:
    """Convert a number to the floats of a file, so that 0.1 equals the 0.1 of a float32 map."""
    with np.errstate(over="ignore"):
        return dtype.type(value) if dtype.kind == "f" else value


def _declared_missing(path: Path) -> float | None:
    """Return the value of unmeasured pixels from a TIFF file's tag GDAL_NODATA; None if absent.

    Raises:
        UserError: the tag is not a number.
    """
    if path.suffix not in (".tif", ".tiff"):
        return None
    with explained_decoding(path, "a map"), Image.open(path, formats=["TIFF"]) as image:
        text = image.tag_v2.get(_NODATA)  # type: ignore[attr-defined]
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        raise UserError(
            f"{path}: its tag GDAL_NODATA (value of unmeasured pixels) is {text!r:.40}, not a "
            "number. Fix: save it without this tag, or with a number"
        ) from None


def _mask_level(path: Path, prop: str, measured: np.ndarray) -> float | None:
    """Find the value of foreground pixels in a mask; None if the mask has no foreground.

    Raises:
        UserError: the mask holds other numbers than 0 and one number for foreground.
    """
    levels = np.unique(measured)
    if (len(levels) == 2 and levels[0] == 0) or (len(levels) == 1 and levels[0] in _FULL_LEVELS):
        return float(levels[-1])
    if len(levels) == 1 and levels[0] == 0:
        return None
    named = ", ".join(f"{level:g}" for level in levels[:_MAX_NAMED])
    more = f", ... ({len(levels)} in all, to {levels[-1]:g})" if len(levels) > _MAX_NAMED else ""
    raise UserError(
        f"{path}: a mask has 0 for background and one other value; this one has {named}{more}. "
        "Fix: convert a map of object numbers or a soft mask to 0 and 255; if a value stands for "
        f"unmeasured pixels, give it as images.missing.{prop}"
    )


def _encoding(dtype: np.dtype) -> str:
    """Name a data type in words, such as ``16-bit integers``."""
    if dtype.kind == "b":
        return "bits"
    return "floats" if dtype.kind == "f" else f"{8 * dtype.itemsize}-bit integers"


def _decoded(path: Path, form: MapFormat) -> np.ndarray:
    """Decode the numbers (y, x) of a map file, in the data type of the file."""
    with explained_decoding(path, "a map"):
        if path.suffix == ".npy":
            values = _npy(path)
        elif path.suffix == ".exr":
            values = _exr(path)
        else:
            values = _image(path)
    if values.ndim == 3:
        values = _without_channels(path, values, form.mean_of_colors and values.dtype.kind == "f")
    if values.ndim != 2 or values.size == 0:
        raise UserError(
            f"{path}: a map has height and width, not shape {values.shape}. Fix: save (y, x) values"
        )
    return values


def _without_channels(path: Path, values: np.ndarray, mean_of_colors: bool) -> np.ndarray:
    """Convert a map (y, x, channel) to (y, x), if its colour channels are equal.

    Args:
        mean_of_colors: True takes the mean of channels that differ; False refuses them.

    Raises:
        UserError: channels differ, alpha varies, or there are too many channels.
    """
    if values.shape[2] == 4:
        alpha = values[..., 3]
        opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
        if not (alpha == opaque).all():
            raise UserError(
                f"{path}: its transparency varies, so its values have no single meaning. Fix: save "
                "the map without an alpha channel"
            )
        values = values[..., :3]
    if values.shape[2] not in (1, 3):
        raise UserError(
            f"{path}: a map has height and width, not shape {values.shape}. Fix: save one channel"
        )
    first = values[..., 0]
    equal_nan = values.dtype.kind == "f"
    if all(np.array_equal(first, values[..., i], equal_nan) for i in range(1, values.shape[2])):
        return first
    if mean_of_colors:
        return np.asarray(values.mean(-1, dtype=np.float64))
    raise UserError(
        f"{path}: its colour channels differ, so it is a picture of a map and not its values. Fix: "
        "save one channel of values"
    )


def _npy(path: Path) -> np.ndarray:
    """Read the array of an NPY file into memory."""
    values = np.load(path, allow_pickle=False, mmap_mode="r")
    if not isinstance(values, np.ndarray):
        raise UserError(
            f"{path}: the file is an archive of arrays (NPZ). Fix: save one array as NPY"
        )
    if values.dtype.kind not in "biuf":
        raise UserError(
            f"{path}: values of type {values.dtype} are not numbers. Fix: save integers or floats"
        )
    if isinstance(values, np.memmap) and path.stat().st_size > values.offset + values.nbytes:
        raise UserError(f"{path}: the file is longer than its array. Fix: save one array as NPY")
    if values.ndim in (2, 3):
        require_readable_size(path, values.shape[1], values.shape[0])
        # The array is a view of the memory-mapped file.  A copy in memory lets the file be closed.
        return np.array(values)
    return np.empty(values.shape) if values.size == 0 else values


def _exr(path: Path) -> np.ndarray:
    """Read the only channel of an EXR file."""
    try:
        import OpenEXR
    except ImportError:
        raise UserError(
            f"{path}: reading EXR needs a package. Fix: pip install 'ldmprobe[exr]', or save it as "
            ".npy"
        ) from None
    with OpenEXR.File(str(path), header_only=True) as file:
        header = file.header()
        (left, top), (right, bottom) = ([int(v) for v in corner] for corner in header["dataWindow"])
        require_readable_size(path, right - left + 1, bottom - top + 1)
        windows = [np.asarray(header[name]).tolist() for name in ("dataWindow", "displayWindow")]
        if len(file.parts) > 1:
            raise UserError(f"{path}: the EXR file has {len(file.parts)} parts. Fix: save one part")
        if windows[0] != windows[1]:
            raise UserError(
                f"{path}: the data window of the EXR file is not its display window. "
                "Fix: save the image uncropped"
            )
        # Zeros at the end of a compressed file show that it was not copied completely.  In an
        # uncompressed file they may be values of the map, so such a file is not checked.
        if file.parts[0].compression() != OpenEXR.NO_COMPRESSION:
            require_intact(path, "EXR")
    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {name: channel.pixels for name, channel in file.channels().items()}
    names = set(channels)
    if len(names) == 1:
        return np.asarray(next(iter(channels.values())))
    if names in ({"R", "G", "B"}, {"R", "G", "B", "A"}):
        return np.stack([channels[name] for name in "RGBA" if name in channels], axis=-1)
    raise UserError(
        f"{path}: the file has the channels {', '.join(sorted(names))}, and it is unknown which is "
        "the map. Fix: save only this channel"
    )


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Return whether a PNG or TIFF file that is open, but not loaded, has 16 bits per channel."""
    if image.format == "TIFF":
        return 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ())  # type: ignore[attr-defined]
    # Of a PNG, the arguments of the decoder are the mode of the stored bytes, such as RGB;16B.
    return "16" in str(image.tile[0].args)  # type: ignore[attr-defined]


def _image(path: Path) -> np.ndarray:
    """Decode the numbers of a PNG or TIFF file, (y, x) or (y, x, channel)."""
    with Image.open(path, formats=[_FORMATS[path.suffix]]) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise UserError(
                f"{path}: the file has {image.n_frames} frames or pages. Fix: save one of them"  # type: ignore[attr-defined]
            )
        require_readable_size(path, *image.size)
        # For a TIFF in which 0 is white, Pillow inverts 8-bit values but not 16-bit values.
        inverted = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
        sixteen_bits = _has_sixteen_bits(image)
        require_intact(path, image.format)
        require_all_pixels(path, image)
        image.load()
        scale_transparency(path, image)
        upright = ImageOps.exif_transpose(image)
    if inverted:
        raise UserError(
            f"{path}: a TIFF in which 0 is white (PhotometricInterpretation), so its values may be "
            "the stored numbers or their inverse. Fix: save it with 0 as black (MinIsBlack)"
        )
    mode = upright.mode
    transparent = upright.info.get("transparency")
    if sixteen_bits and not mode.startswith("I"):
        raise UserError(
            f"{path}: it has 16 bits per channel, but only 8 of them can be read in mode {mode}. "
            "Fix: save one 16-bit channel"
        )
    if mode in _ALPHA_MODES or (transparent is not None and mode in ("P", "RGB")):
        return np.asarray(upright.convert("RGBA"))
    if mode == "P":
        return np.asarray(upright.convert("RGB"))
    if mode not in ("1", "L", "RGB", "F") and not mode.startswith("I"):
        raise UserError(
            f"{path}: mode {mode} is that of a colour image, not of a map. Fix: save one "
            "channel of values"
        )
    values = np.asarray(upright)
    if transparent is not None and np.isin(values, transparent).any():
        raise UserError(
            f"{path}: value {transparent} is transparent. Fix: save the map without transparency; "
            "if these pixels were not measured, give the value in images.missing"
        )
    return values
