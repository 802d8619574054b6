"""A user's source images, with exact maps beside them.

``lemon.png`` is a source image; ``lemon.depth.npy``, ``lemon.foreground.png`` and
``lemon.shading.exr`` are its maps.  Depth may be in any unit, larger is farther; foreground is 0
or white; shading is at least 0.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.properties import map_properties, property_of
from ldmprobe_core.study.readers.image_files import open_rgb
from ldmprobe_core.study.sections import Images

_PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
_MAPS = (".npy", ".png", ".exr")


def list_images(folder: str, field: str = "photographs") -> list[str]:
    """File names of the images in a folder, sorted, without the maps beside them.

    Args:
        field: name of the setting that gives the folder, for messages.

    Raises:
        UserError: the folder does not exist, has no image, or has two that would share their maps.
    """
    path_of_folder = Path(folder).expanduser()
    if not path_of_folder.is_dir():
        raise UserError(f"{field} {folder!r}: there is no such folder. Fix: check the path")
    names = sorted(
        path.name
        for path in path_of_folder.iterdir()
        if path.suffix.lower() in _PICTURES
        and not path.name.startswith(".")
        and Path(path.stem).suffix[1:] not in map_properties()
    )
    if not names:
        raise UserError(f"{field} {folder!r} holds 0 images. Fix: add PNG, JPEG or WebP files")
    stems: dict[str, str] = {}
    for name in names:
        other = stems.setdefault(Path(name).stem, name)
        if other != name:
            raise UserError(
                f"{field} {folder!r}: {other} and {name} would share their maps. Fix: rename one"
            )
    return names


def image_names(images: Images) -> list[str]:
    """File names of a study's source images, in order.

    Raises:
        UserError: the folder does not exist or has too few images.
    """
    names = list_images(images.folder, "images.folder")
    count = images.samples or len(names)
    if len(names) < max(3, count):
        raise UserError(
            f"images.folder {images.folder!r} holds {len(names)} images, fewer than "
            f"{max(3, count)}. Fix: add some, or lower images.samples (at least 3, one a split)"
        )
    return names[:count]


def images_hash(images: Images, names: list[str]) -> str:
    """Hash of the contents of the source images and all their maps; 16 hex digits."""
    folder = Path(images.folder).expanduser()
    digest = hashlib.sha256()
    for name in names:
        maps = [map_path(folder, name, prop) for prop in map_properties()]
        for path in (folder / name, *(p for p in maps if p is not None)):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def map_path(folder: Path, picture: str, prop: str) -> Path | None:
    """Path of a source image's exact map of a property; None if it has none."""
    stem = Path(picture).stem
    for suffix in _MAPS:
        path = folder / f"{stem}.{prop}{suffix}"
        if path.is_file():
            return path
    return None


def exact_map_properties(images: Images, names: list[str]) -> tuple[str, ...]:
    """Properties of which every source image has an exact map.

    Raises:
        UserError: only some of the images have a map of a property.
    """
    folder = Path(images.folder).expanduser()
    present = []
    for prop in map_properties():
        missing = [name for name in names if map_path(folder, name, prop) is None]
        if not missing:
            present.append(prop)
        elif len(missing) < len(names):
            raise UserError(
                f"images.folder {images.folder!r}: {missing[0]} has no {prop} map beside it, as "
                f"other images have. Fix: add {Path(missing[0]).stem}.{prop}.npy, .png or .exr"
            )
    return tuple(present)


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read an image as (y, x, rgb) uint8, cropped centrally to the aspect of ``size`` and resized.

    Args:
        size: height and width in pixels.

    Raises:
        UserError: the file cannot be read.
    """
    image = open_rgb(path)
    box = _middle(image.height, image.width, size)
    resized = image.resize(size[::-1], Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized, dtype=np.uint8)


def read_map(
    path: Path, prop: str, size: tuple[int, int], picture: Path | None = None
) -> np.ndarray:
    """Read a map as (y, x) float32, cropped and resized as its source image is.

    The property's `MapFormat` decides scaling, limits and resampling.

    Args:
        size: height and width in pixels.
        picture: source image of the map, whose aspect it must have; None skips this check.

    Raises:
        UserError: the file cannot be read, or its values are out of the property's range.
    """
    values = _load_map(path)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: values that are not finite. Fix: replace them")
    form = property_of(prop).map_format
    if form.unit_range:
        high = float(values.max())
        if values.min() < 0 or (high > 1 and high not in (255, 65535)):
            raise UserError(
                f"{path}: a mask has values 0 to 1 or 0 to 255, not {values.min():g} to {high:g}. "
                "Fix: convert a map of object numbers to a mask"
            )
        values = values / max(high, 1)
    if form.minimum is not None and values.min() < form.minimum:
        raise UserError(f"{path}: {prop} is at least {form.minimum:g}, not {values.min():g}")
    if picture is not None:
        with Image.open(picture) as source_image:
            width, height = ImageOps.exif_transpose(source_image).size
        if abs(values.shape[0] * width - values.shape[1] * height) > max(width, height):
            raise UserError(
                f"{path}: it is {values.shape[0]} x {values.shape[1]}, and its source image "
                f"{height} x {width}. Fix: give both the same aspect"
            )
    box = _middle(values.shape[0], values.shape[1], size)
    resampling = Image.Resampling[form.resampling.upper()]
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize(size[::-1], resampling, box=box), dtype=np.float32)


def _load_map(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix == ".exr":
            values = _load_exr(path)
        else:
            with Image.open(path) as image:
                values = np.asarray(image)
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a map ({type(error).__name__}). Fix: save it again"
        ) from error
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 3:
        values = values[..., : min(3, values.shape[2])].mean(-1)
    if values.ndim != 2 or values.size == 0:
        raise UserError(f"{path}: a map has height and width, not shape {values.shape}")
    return values


def _load_exr(path: Path) -> np.ndarray:
    try:
        import OpenEXR
    except ImportError:
        raise UserError(
            f"{path}: reading EXR needs a package. Fix: pip install 'ldmprobe[exr]', or save it as "
            ".npy"
        ) from None
    with OpenEXR.File(str(path)) as file:
        channels = [channel.pixels for channel in file.channels().values()]
    return np.concatenate([np.atleast_3d(channel) for channel in channels], axis=-1)


def _middle(height: int, width: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Largest centred box with the aspect of ``size``: left, top, right, bottom in pixels."""
    scale = min(height / size[0], width / size[1])
    across, down = size[1] * scale, size[0] * scale
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
