"""Target maps: a sample's own map shifted, scaled or mirrored, or a map from a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.ndimage import affine_transform

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.properties import DEPTH, FOREGROUND
from ldmprobe_core.study.readers.image_folder import read_map


def target_maps(labels: np.ndarray, targets: tuple[Target, ...]) -> np.ndarray:
    """Maps aimed at, (target, sample, y, x), of the samples' own labels (sample, y, x)."""
    return np.stack([np.stack([target_map(own, target) for own in labels]) for target in targets])


class Target(BaseModel):
    """What a map is turned into, in this order: scaled, mirrored, moved; or replaced by a file.

    Attributes:
        dx, dy: shift to the right and down, as shares of the image's width and height.
        scale: about the object's centre (the mask's, or the image's for a map), 1 leaves it.
        mirror: left for right, about the image's middle.
        file: a map of the image's size instead: for a mask PNG or NPY, for a map NPY in the
            labeler's units.
        content_hash: of the file's contents, entered when it is read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dx: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    dy: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    scale: Annotated[float, Field(gt=0.05, lt=20)] = 1.0
    mirror: bool = False
    file: str | None = None
    content_hash: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Target:
        if self.file is not None and (self.dx, self.dy, self.scale, self.mirror) != (
            0,
            0,
            1,
            False,
        ):
            raise ValueError("a target is a file, or the sample's own map changed: keep one")
        return self

    def __str__(self) -> str:
        """A short name, such as ``shift 0.2, 0``."""
        if self.file is not None:
            return Path(self.file).name
        parts = []
        if self.scale != 1:
            parts.append(f"scale {self.scale:g}")
        if self.mirror:
            parts.append("mirror")
        if self.dx or self.dy or not parts:
            parts.append(f"shift {self.dx:g}, {self.dy:g}")
        return ", ".join(parts)


def resolve_target(target: Target) -> Target:
    """The target with its file's whole path and the digest of its contents.

    Raises:
        UserError: it cannot be read.
    """
    if target.file is None:
        return target
    path = Path(target.file).expanduser().absolute()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"target {target.file!r}: there is no such file") from error
    return target.model_copy(update={"file": str(path), "content_hash": digest})


def target_map(own: np.ndarray, target: Target) -> np.ndarray:
    """The map that a sample is to show.

    Args:
        own: the sample's label, (y, x); bool for a mask, else values.

    Returns:
        the same shape and dtype.  What moves in from outside is background in a mask, and the
        nearest value of the border in a map.

    Raises:
        UserError: a file of another size.
    """
    height, width = own.shape
    if target.file is not None:
        return _from_file(Path(target.file).expanduser(), own)
    mask = own.dtype == bool
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    if mask and own.any():
        centre = np.argwhere(own).mean(0)
    # output pixel o shows input pixel i: o = centre + scale (i - centre), mirrored, then shifted
    shift = np.array([target.dy * height, target.dx * width])
    flip = np.array([1.0, -1.0 if target.mirror else 1.0])
    middle = np.array([0.0, (width - 1) if target.mirror else 0.0])
    # i = centre + (flip (o - shift - middle) - centre) / scale
    matrix = flip / target.scale
    offset = centre - (flip * (shift + middle) + centre) / target.scale
    values = own.astype(np.float64)
    moved = affine_transform(
        values,
        np.diag(matrix),
        offset,
        order=0 if mask else 1,
        mode="constant" if mask else "nearest",
        cval=0.0,
    )
    return moved > 0.5 if mask else moved.astype(own.dtype)


def _from_file(path: Path, own: np.ndarray) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"target {str(path)!r}: there is no such file")
    mask = own.dtype == bool
    if not mask and path.suffix != ".npy":
        raise UserError(
            f"target {str(path)!r}: a map is given as .npy in the labeler's units; the grey levels "
            "of a picture have none"
        )
    shape = _shape_of(path)
    if shape != own.shape:
        raise UserError(
            f"target {str(path)!r} is {shape[0]} x {shape[1]}, and the images are {own.shape[0]} x "
            f"{own.shape[1]}: resize it"
        )
    values = read_map(path, FOREGROUND.name if mask else DEPTH.name, (own.shape[0], own.shape[1]))
    if np.isnan(values).any():
        raise UserError(
            f"target {str(path)!r}: {int(np.isnan(values).sum())} pixels are NaN. Fix: give every "
            "pixel a value to aim at"
        )
    return values > 0.5 if mask else values.astype(own.dtype)


def _shape_of(path: Path) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        if path.suffix == ".npy":
            shape = np.load(path, allow_pickle=False, mmap_mode="r").shape
            if len(shape) < 2:
                raise ValueError(shape)
            return int(shape[0]), int(shape[1])
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise UserError(f"target {str(path)!r}: give a PNG or NPY with height and width") from error
