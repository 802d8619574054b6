"""Checks of a folder of source images and maps; every file is decoded before a run begins."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ldmprobe_core.errors import UserError, verb
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.readers.image_files import image_size, is_rotated
from ldmprobe_core.study.readers.image_folder import (
    file_digest,
    files_in,
    images_beside,
    is_picture,
    map_path,
    map_property,
    read_image,
    require_same_aspect,
    resize_map,
)
from ldmprobe_core.study.readers.map_files import MAP_SUFFIXES, load_map, map_words
from ldmprobe_core.study.readers.map_notes import (
    MapFacts,
    comparison_notes,
    listed,
    map_notes,
    mark_of,
)
from ldmprobe_core.study.readers.value_types import user_path
from ldmprobe_core.study.sections import Images

_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class FolderCheck:
    """Result of checking a folder: notes for the user, and shares of unmeasured pixels.

    Attributes:
        notes: warnings about problems that do not prevent a run.
        missing: by property, the share of pixels that were not measured, over the maps of all
            source images at the model's image size.
    """

    notes: tuple[str, ...]
    missing: dict[str, float]


class _Problems:
    """Collector of problems of several files, which are then reported in one error.

    Attributes:
        files: by name of a source image, the first problem with it or its maps.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    @contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Record a `UserError` that the ``with`` block raises as a problem of one source image."""
        try:
            yield
        except UserError as error:
            self.files.setdefault(name, str(error))

    def require_none(self) -> None:
        """Raise `UserError` with the first recorded problem and the names of other bad images."""
        if self.files:
            first, *others = self.files
            file_problem_and_remedy = self.files[first]
            more = f". Other images with problems: {listed(others)}" if others else ""
            raise UserError(f"{file_problem_and_remedy}{more}")


@dataclass(frozen=True)
class _PictureFacts:
    """Facts about one source image: hash of its pixels, and whether it is small or rotated.

    Attributes:
        pixels: hash of the pixels at the model's image size.
        is_small: whether the file has fewer rows or columns than the model's images.
        is_rotated: whether the EXIF orientation rotates or mirrors the image.
    """

    pixels: bytes
    is_small: bool
    is_rotated: bool


def check_folder(
    images: Images, names: list[str], size: tuple[int, int], props: Collection[str]
) -> FolderCheck:
    """Decode every source image and map, and compare the maps of each property.

    Results are cached in this process by the contents of the files.

    Args:
        images: section of the study that names the folder.
        names: file names of the source images.
        size: height and width of the model's images in pixels.
        props: properties that may have maps, see `image_folder`.

    Raises:
        UserError: files cannot be read, do not fit their source image, or have different units.
            The message explains the first problem and names the other files.
    """
    folder = user_path(images.folder)
    notes = _check_names(folder, props)
    problems = _Problems()
    by_pixels: dict[bytes, str] = {}
    pictures: dict[str, _PictureFacts] = {}
    for name in names:
        with problems.noted(name):
            pictures[name] = _check_picture(folder / name, file_digest(folder / name), size)
            _require_new(folder / name, pictures[name].pixels, by_pixels)
    whole = [name for name in names if name not in problems.files]
    notes += _picture_notes(folder, pictures, size, props)
    facts: dict[str, dict[str, MapFacts]] = {prop: {} for prop in props}
    for name in whole:
        picture = folder / name
        for prop in props:
            with problems.noted(name):
                path = map_path(folder, name, prop)
                if path is not None:
                    facts[prop][path.name] = _check_map(
                        path, picture, file_digest(path), file_digest(picture), prop, size,
                        images.missing.get(prop),
                    )  # fmt: skip
    problems.require_none()
    missing, notes_on_maps = _check_properties(images, facts)
    return FolderCheck(tuple(notes + notes_on_maps), missing)


def _check_properties(
    images: Images, facts: dict[str, dict[str, MapFacts]]
) -> tuple[dict[str, float], list[str]]:
    """Check that the maps of each property have one format; return shares of unmeasured pixels.

    Args:
        facts: facts about each map, by property and file name.

    Returns:
        the share of pixels that were not measured, by property, and notes about the maps.

    Raises:
        UserError: the maps of a property differ in kind, or ``images.missing`` has a property
            without maps.
    """
    folder = user_path(images.folder)
    missing: dict[str, float] = {}
    notes: list[str] = []
    for prop, by_name in facts.items():
        stated = prop in images.missing
        if stated and not by_name:
            raise UserError(
                f"images.missing has {prop}, but there are no {prop} maps in {images.folder!r}. "
                f"Fix: remove {prop} from images.missing, or add the maps"
            )
        if by_name:
            _require_alike(folder, prop, by_name)
            missing[prop] = float(np.mean([one.missing for one in by_name.values()]))
            notes += map_notes(prop, by_name, missing[prop], stated)
            notes += comparison_notes(prop, by_name)
    return missing, notes


def _check_names(folder: Path, props: Collection[str]) -> list[str]:
    """Return notes about files that are neither source images nor their maps, or may be misnamed.

    Raises:
        UserError: a file is named like a map, but has the suffix of a format that maps cannot have.
    """
    files = files_in(folder, props)
    stems = {path.stem for path in files if is_picture(path, props)}
    unread, orphans = [], []
    for path in files:
        prop = map_property(path, props)
        if prop is not None:
            stem, _, written = path.stem.rpartition(".")
            if path.suffix not in MAP_SUFFIXES or written != prop:
                raise UserError(
                    f"{path}: a {prop} map cannot have this name. Fix: save the map as "
                    f"{stem}.{prop}.npy, .png, .tif or .exr, or rename the file if it is no map"
                )
            if stem not in stems:
                orphans.append(path.name)
        elif not is_picture(path, props) and path.name.lower() not in _SYSTEM_FILES:
            unread.append(path.name)
    notes = []
    if unread:
        notes.append(
            f"images.folder: files that are neither PNG, JPEG or WebP images nor maps are not "
            f"read: {listed(unread)}"
        )
    if orphans:
        notes.append(f"images.folder: maps without a source image are not read: {listed(orphans)}")
    possible = _possible_maps(stems, props)
    mistaken = [path.name for path in files if path.stem in possible and is_picture(path, props)]
    if mistaken:
        notes.append(
            "images.folder: files that may be maps are taken as source images, since the name of a "
            f"map has a dot before its property: {listed(mistaken)}"
        )
    pictures = [path.name for path in files if is_picture(path, props)]
    beside = [name for name, _, _ in images_beside(folder, pictures, props)]
    if beside:
        notes.append(
            "images.folder: files that are named like another source image, with a word added, are "
            f"source images of their own: {listed(beside)}"
        )
    return notes


def _possible_maps(stems: Collection[str], props: Collection[str]) -> set[str]:
    """Return names such as a_mask, mask-a, a_normal and "a depth map", beside a source image a.

    A word alone marks no map, since an image may show a mask or a label.
    """
    words = "|".join(re.escape(word.removesuffix("s")) for word in map_words(props))
    word = f"(?:{words})s?(?:[-_ ]?maps?)?"
    pattern = re.compile(f"(?P<before>.+)[-_ ]{word}|{word}[-_ ](?P<after>.+)", re.IGNORECASE)
    matches = ((stem, pattern.fullmatch(stem)) for stem in stems)
    return {
        stem for stem, match in matches if match and (match["before"] or match["after"]) in stems
    }


@lru_cache(maxsize=1 << 16)
def _check_picture(path: Path, digest: bytes, size: tuple[int, int]) -> _PictureFacts:
    """Check that an image can be read."""
    pixels = read_image(path, size)
    if (pixels == pixels[0, 0]).all():
        raise UserError(
            f"{path}: all pixels have the same colour, so the image shows nothing. Fix: remove the "
            "image, or save it again"
        )
    width, height = image_size(path)
    return _PictureFacts(
        hashlib.sha256(pixels.tobytes()).digest(),
        height < size[0] or width < size[1],
        is_rotated(path),
    )


def _require_new(path: Path, pixels: bytes, names: dict[bytes, str]) -> None:
    """Check that an image is no copy of an earlier one; the copies could get into two splits.

    Args:
        pixels: hash of the image's pixels.
        names: file names of the earlier images by hash, to which this image is added.

    Raises:
        UserError: another file has the same pixels.
    """
    first = names.setdefault(pixels, path.name)
    if first != path.name:
        raise UserError(
            f"{path}: the same image as {first}. Fix: remove one of them, with its maps"
        )


@lru_cache(maxsize=1 << 16)
def _check_map(
    path: Path,
    picture: Path,
    digest: bytes,
    picture_digest: bytes,
    prop: str,
    size: tuple[int, int],
    missing: float | None,
) -> MapFacts:
    """Load a map, resize it to the model's image size, and return facts such as its median."""
    loaded = load_map(path, prop, missing)
    require_same_aspect(path, loaded, picture)
    values = resize_map(path, loaded, prop, size)
    measured = values[~np.isnan(values)]
    return MapFacts(
        1 - measured.size / values.size,
        loaded.encoding,
        loaded.level,
        bool((measured == measured[0]).all()),
        float(np.median(np.abs(measured))),
        mark_of(prop, loaded.values),
        hashlib.sha256(values.tobytes()).digest(),
        any(stored < needed for stored, needed in zip(loaded.values.shape, size, strict=True)),
    )


def _require_alike(folder: Path, prop: str, facts: dict[str, MapFacts]) -> None:
    """Check that the maps of a property have the same encoding, and are not all constant.

    Raises:
        UserError: masks have different levels, scalar maps have different number types, or every
            map has the same value in all pixels.
    """
    if all(one.constant for one in facts.values()):
        raise UserError(
            f"{folder / next(iter(facts))}: all measured pixels have the same value, as in every "
            f"other {prop} map, so no probe can be fitted. Fix: correct the maps, or "
            f"images.missing.{prop} if it excludes pixels that were measured"
        )
    if property_of(prop).is_mask:
        kinds = {name: f"level {one.level:g}" for name, one in facts.items() if one.level}
        meaning = "the maps may hold object numbers"
    else:
        kinds = {name: one.encoding for name, one in facts.items()}
        meaning = "their units differ"
    first: dict[str, str] = {}
    for name, kind in kinds.items():
        first.setdefault(kind, name)
    if len(first) > 1:
        (kind, name), (other_kind, other) = list(first.items())[:2]
        raise UserError(
            f"{folder / other}: it has {other_kind}, and {name} has {kind}, so {meaning}. Fix: "
            f"save all {prop} maps with the same type and units"
        )


def _picture_notes(
    folder: Path, facts: dict[str, _PictureFacts], size: tuple[int, int], props: Collection[str]
) -> list[str]:
    """Return notes on enlarged images, and on images that EXIF rotates but not their maps."""
    notes = []
    small = [name for name, one in facts.items() if one.is_small]
    if small:
        notes.append(
            f"images: {len(small)} of {len(facts)} source images {verb(len(small))} smaller than "
            f"the model's, {size[0]} x {size[1]}, and {verb(len(small))} enlarged: {listed(small)}"
        )
    rotated = [
        name
        for name, one in facts.items()
        if one.is_rotated and any(map_path(folder, name, prop) for prop in props)
    ]
    if rotated:
        notes.append(
            f"images: {len(rotated)} of {len(facts)} source images {verb(len(rotated))} rotated "
            "by EXIF orientation, and the maps beside are taken to be upright already: "
            f"{listed(rotated)}"
        )
    return notes
