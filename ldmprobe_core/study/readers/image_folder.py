"""Reader of a folder of source images and of the ground-truth maps that may lie beside them.

``lemon.png`` is a source image; ``lemon.depth.npy``, ``lemon.foreground.png`` and
``lemon.shading.exr`` are its maps.  Depth may have any unit, and increases with distance.  A
foreground map holds 0 and one other number.  Shading is at least 0.  NaN, and the values in
``images.missing``, mark pixels that were not measured.

Functions that judge files by their names take ``props``, the names of the properties that may have
maps: those of the study, `Study.map_properties`.  `image_names` refuses an image beside another one
that has a similar word in the place of the property, such as ``lemon.depht.png``.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from PIL import Image

from ldmprobe_core.errors import UserError, counted
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.readers.image_files import image_size, open_rgb
from ldmprobe_core.study.readers.map_files import MAP_SUFFIXES, LoadedMap, load_map, map_words
from ldmprobe_core.study.readers.value_types import user_path
from ldmprobe_core.study.sections import Images

_PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
_MIN_SIMILARITY = 0.8
"""Smallest ratio of `difflib` at which a word is a misspelled one; 0.8 is two letters swapped."""


def list_images(folder: str, props: Collection[str], field: str = "photographs") -> list[str]:
    """List the sorted file names of the source images in a folder, without their maps.

    Args:
        folder: path of the folder.
        props: properties that may have maps.
        field: name of the setting that gives the folder, for messages.

    Raises:
        UserError: the folder does not exist, has no images, or has two images that differ only in
            their suffix and would share their maps.
    """
    path_of_folder = user_path(folder)
    if not path_of_folder.is_dir():
        raise UserError(f"{field} {folder!r}: there is no such folder. Fix: check the path")
    names = sorted(path.name for path in files_in(path_of_folder, props) if is_picture(path, props))
    if not names:
        raise UserError(f"{field} {folder!r} holds 0 images. Fix: add PNG, JPEG or WebP files")
    stems: dict[str, str] = {}
    for name in names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(
                f"{field} {folder!r}: the file name {name!a} is not UTF-8. Fix: rename it"
            )
        if not name.isprintable():
            raise UserError(
                f"{field} {folder!r}: the file name {name!a} has control characters. Fix: rename it"
            )
        other = stems.setdefault(unicodedata.normalize("NFC", Path(name).stem), name)
        if other != name:
            raise UserError(
                f"{field} {folder!r}: {other} and {name} have the same name before the suffix, so "
                "they would share their maps. Fix: rename one of them"
            )
    return names


def files_in(folder: Path, props: Collection[str]) -> list[Path]:
    """List the visible files of a folder, sorted by name; broken links are included.

    Args:
        folder: path of the folder.
        props: properties that may have maps.

    Raises:
        UserError: the folder cannot be listed, or a pipe is named like an image.
    """
    try:
        visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        for path in visible:
            is_named = path.suffix.lower() in _PICTURES or map_property(path, props) is not None
            if is_named and path.exists() and not (path.is_file() or path.is_dir()):
                raise UserError(f"{path}: it is a pipe or a device. Fix: rename it, or remove it")
        return [path for path in visible if path.is_file() or not path.exists()]
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({type(error).__name__}). Fix: check the folder's "
            "permissions"
        ) from error


def is_picture(path: Path, props: Collection[str]) -> bool:
    """Return whether a file is an image and not a map, judged by its name."""
    return path.suffix.lower() in _PICTURES and map_property(path, props) is None


def map_property(path: Path, props: Collection[str]) -> str | None:
    """Return the property in a map's file name, such as ``depth`` in ``a.depth.png``, or None."""
    prop = Path(path.stem).suffix[1:].lower()
    return prop if prop in props else None


def image_names(images: Images, props: Collection[str]) -> list[str]:
    """List the file names of a study's source images, in the order of its samples.

    Args:
        images: section of the study that names the folder.
        props: properties that may have maps.

    Raises:
        UserError: the folder does not exist, has too few images, or has an image that is named like
            a map, with a misspelled property or one that cannot have maps.
    """
    names = list_images(images.folder, props, "images.folder")
    _require_no_unknown_maps(user_path(images.folder), names, props)
    count = images.samples or len(names)
    if len(names) < max(3, count):
        raise UserError(
            f"images.folder {images.folder!r} holds {counted(len(names), 'image')}, fewer than "
            f"{max(3, count)}. Fix: add images, or lower images.samples (at least 3, one for "
            "each split)"
        )
    return names[:count]


def _require_no_unknown_maps(folder: Path, names: list[str], props: Collection[str]) -> None:
    """Check that no image is named like a map of another image, but with an unknown property.

    Raises:
        UserError: an image has the name of a map, or one that is similar.
    """
    known = map_words(props)
    for name, other, word in images_beside(folder, names, props):
        if not get_close_matches(word.lower(), known, 1, _MIN_SIMILARITY):
            continue
        stem = Path(other).stem
        problem = f"{word} is no property that can have maps"
        components = _components_of(word.lower(), props)
        if components:
            problem = f"maps of {word} are given by component ({', '.join(components)})"
        raise UserError(
            f"{folder / name}: it is named like a map of {other}, but {problem}. Fix: name "
            f"a map {stem}.PROPERTY.npy, .png, .tif or .exr, with one of {', '.join(props)}; name "
            f"a source image without {f'.{word}'!r}"
        )


def images_beside(
    folder: Path, names: list[str], props: Collection[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield images whose names are those of other images with a dot and a word added.

    An image that has a map of its own, such as ``a.side.depth.npy`` beside ``a.side.png``, is left
    out, and so is one whose word is a version or the suffix of an image, such as ``a.v2.png``.

    Yields:
        the image's file name, that of the other image, and the word.
    """
    stems = {Path(name).stem: name for name in names}
    for name in names:
        stem, _, word = Path(name).stem.rpartition(".")
        is_version = re.fullmatch(r"v?[\W\d_]*", word, re.IGNORECASE)
        if stem not in stems or is_version or f".{word.lower()}" in _PICTURES:
            continue
        if not any(map_path(folder, name, prop) for prop in props):
            yield name, stems[stem], word


def _components_of(name: str, props: Collection[str]) -> list[str]:
    """Return the properties that are components of a vector or class map of this name."""
    records = ((prop, property_of(prop).component) for prop in props)
    return [prop for prop, component in records if component and component.vector == name]


def images_hash(images: Images, names: list[str], props: Collection[str]) -> str:
    """Compute a hash, 16 hex digits, of the names and contents of source images and maps.

    Args:
        images: section of the study that names the folder.
        names: file names of the source images.
        props: properties that may have maps; the hash depends on their order.

    Raises:
        UserError: a file cannot be read.
    """
    folder = user_path(images.folder)
    digest = hashlib.sha256()
    for name in names:
        _update_with_files(digest, folder, name, props)
    return digest.hexdigest()[:16]


def source_digest(folder: Path, name: str, props: Collection[str]) -> str:
    """Compute a hash, 16 hex digits, of the names and contents of one image and its maps.

    Args:
        folder: folder of the source images.
        name: file name of the source image.
        props: properties that may have maps; the hash depends on their order.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256()
    _update_with_files(digest, folder, name, props)
    return digest.hexdigest()[:16]


def _update_with_files(
    digest: hashlib._Hash, folder: Path, name: str, props: Collection[str]
) -> None:
    """Add the names and contents of a source image and of its maps to a hash."""
    maps = [map_path(folder, name, prop) for prop in props]
    for path in (folder / name, *(p for p in maps if p is not None)):
        digest.update(path.name.encode() + file_digest(path))


def file_digest(path: Path) -> bytes:
    """Compute the SHA-256 of a file's contents, 32 bytes.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}). Fix: restore the file, or check its "
            "permissions"
        ) from error


def map_path(folder: Path, picture: str, prop: str) -> Path | None:
    """Find a source image's ground-truth map of a property; None if it has none.

    Raises:
        UserError: the image has several such maps, in different formats.
    """
    stem = Path(picture).stem
    paths = [folder / f"{stem}.{prop}{suffix}" for suffix in MAP_SUFFIXES]
    present = [path for path in paths if path.is_file()]
    if len(present) > 1:
        raise UserError(
            f"{present[0]}: {picture} has a second {prop} map, {present[1].name}. Fix: remove one "
            "of these maps"
        )
    return present[0] if present else None


def exact_map_properties(
    images: Images, names: list[str], props: Collection[str]
) -> tuple[str, ...]:
    """Return the properties for which every source image has a ground-truth map.

    Args:
        images: section of the study that names the folder.
        names: file names of the source images.
        props: properties that may have maps.

    Raises:
        UserError: some images have a map of a property, and others have not.
    """
    folder = user_path(images.folder)
    present = []
    for prop in props:
        missing = [name for name in names if map_path(folder, name, prop) is None]
        if not missing:
            present.append(prop)
        elif len(missing) < len(names):
            raise UserError(
                f"images.folder {images.folder!r}: {missing[0]} has no {prop} map, but "
                f"other images have one. Fix: add {Path(missing[0]).stem}.{prop}.npy, .png, .tif "
                "or .exr"
            )
    return tuple(present)


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read an image as (y, x, rgb) uint8, cropped to the aspect of ``size`` and resized.

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
    path: Path,
    prop: str,
    size: tuple[int, int],
    picture: Path | None = None,
    missing: float | None = None,
) -> np.ndarray:
    """Read a map as (y, x) float32, cropped and resized in the same way as its source image.

    The property's `MapFormat` gives the allowed values and the resampling method.

    Args:
        size: height and width in pixels.
        picture: source image, whose aspect the map must have; None skips this check.
        missing: value that marks pixels that were not measured, like NaN; None if only NaN does.

    Returns:
        the values of the map, 0 or 1 in a mask; NaN for pixels that were not measured.

    Raises:
        UserError: the file cannot be read, or its values are out of the property's range.
    """
    loaded = load_map(path, prop, missing)
    if picture is not None:
        require_same_aspect(path, loaded, picture)
    return resize_map(path, loaded, prop, size)


def require_same_aspect(path: Path, loaded: LoadedMap, picture: Path) -> None:
    """Check that a map has the same aspect ratio as its source image.

    Raises:
        UserError: the aspects differ by more than one pixel.
    """
    width, height = image_size(picture)
    down, across = loaded.values.shape
    if abs(down * width - across * height) > max(width, height):
        raise UserError(
            f"{path}: the map has {down} x {across} pixels (height x width), and its source image "
            f"{height} x {width}. Fix: give both the same aspect ratio"
        )


MIN_MEASURED = 0.01
"""Smallest accepted share of measured pixels in a map at the model's image size."""


def resize_map(path: Path, loaded: LoadedMap, prop: str, size: tuple[int, int]) -> np.ndarray:
    """Crop a map to the aspect of ``size`` and resize it to (y, x) float32.

    A resized pixel is the weighted mean of the measured pixels that it covers.  It is NaN if less
    than half of the weight belongs to measured pixels.

    Args:
        path: path of the map, for messages.

    Raises:
        UserError: less than `MIN_MEASURED` of the resized pixels are measured.
    """
    values = loaded.values
    box = _middle(values.shape[0], values.shape[1], size)
    resampling = Image.Resampling[property_of(prop).map_format.resampling.upper()]

    def resized(pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels.astype(np.float32))
        return np.asarray(image.resize(size[::-1], resampling, box=box), dtype=np.float32)

    measured = ~np.isnan(values)
    if measured.all():
        return resized(values)
    if resampling == Image.Resampling.NEAREST:
        result = resized(values)
    else:
        weight = resized(measured)
        total = resized(np.where(measured, values, 0))
        result = np.where(weight >= 0.5, total / np.maximum(weight, 0.5), np.nan).astype(np.float32)
    share = float((~np.isnan(result)).mean())
    if share < MIN_MEASURED:
        raise UserError(
            f"{path}: only {share:.2%} of its pixels are measured, fewer than {MIN_MEASURED:.0%}. "
            "Fix: remove the source image and its maps"
        )
    return result


def _middle(height: int, width: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest centred box with the aspect of ``size``: left, top, right, bottom."""
    scale = min(height / size[0], width / size[1])
    across, down = size[1] * scale, size[0] * scale
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
