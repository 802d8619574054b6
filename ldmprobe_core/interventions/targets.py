"""Target maps of interventions: transformed labels of the samples, or maps from files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.ndimage import affine_transform

from ldmprobe_core.errors import UserError, counted, verb
from ldmprobe_core.study.properties import DEPTH, FOREGROUND
from ldmprobe_core.study.readers.image_folder import read_map
from ldmprobe_core.study.readers.value_types import user_path


def target_maps(labels: np.ndarray, targets: tuple[Target, ...]) -> np.ndarray:
    """Compute target maps (target, sample, y, x) from the samples' labels (sample, y, x)."""
    return np.stack(
        [np.stack([target_map(label, target) for label in labels]) for target in targets]
    )


def require_aim(target: Target, labels: np.ndarray, maps: np.ndarray) -> None:
    """Check that a target differs from the label, and is not constant, in some sample.

    Args:
        target: target of an edit.
        labels: label maps, (sample, y, x).
        maps: target maps of the same samples, likewise.

    Raises:
        UserError: in every sample, the target is the label itself, or the label shifted by less
            than half a pixel, or has one value at all pixels, so that no edit could be seen to lead
            to it.
    """
    tiny = target.is_shift_below(0.5, labels.shape[1:])
    same = (maps == labels).all((1, 2)) | tiny
    constant = (maps == maps[:, :1, :1]).all((1, 2))
    if not (same | constant).all():
        return
    problem, remedy = "is the same at all pixels", "less"
    if same.any():
        moved = ", moved by less than half a pixel" if tiny and (target.dx or target.dy) else ""
        problem, remedy = f"is the sample's own label{moved}", "more"
    raise UserError(
        f"targets: in each of the {counted(len(maps), 'sample')} the target {problem} ({target}). "
        f"Fix: choose a target that changes the map {remedy}, or other samples"
    )


class Target(BaseModel):
    """Target of an edit: a transformation of the label map, or a file that replaces the map.

    A transformation first scales the map, then mirrors it, then shifts it; the values of the result
    are then tilted and stretched.

    Attributes:
        dx: shift to the right, as a fraction of the image's width.
        dy: shift down, as a fraction of the image's height.
        scale: scale factor about the centre of the mask, or of the image for other maps.
        mirror: whether to swap left and right, about the image's vertical midline.
        tilt: slope that is added to the values of the map from the left edge to the right edge, in
            standard deviations of the map over its pixels; it does not apply to masks.
        stretch: half the range of the values after a linear transformation, in standard deviations
            of the map over its pixels; the middle of the range becomes the mean of the map.  It
            does not apply to masks.
        file: path of a map of the image's size; PNG or NPY for a mask, NPY in the labeler's units
            for other maps.
        content_hash: first 16 hexadecimal digits of the SHA-256 hash of the file, set by
            `resolve_target`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dx: Annotated[float, Field(gt=-1, lt=1, strict=True)] = 0.0
    dy: Annotated[float, Field(gt=-1, lt=1, strict=True)] = 0.0
    scale: Annotated[float, Field(gt=0.05, lt=20, strict=True)] = 1.0
    mirror: bool = False
    tilt: Annotated[float, Field(ge=-100, le=100, strict=True)] = 0.0
    stretch: Annotated[float, Field(gt=0, le=1000, strict=True)] | None = None
    file: str | None = None
    content_hash: str | None = None

    @model_validator(mode="after")
    def _file_or_transformation(self) -> Target:
        """Check that a target is not both a file and a transformation."""
        transformation = self.dx, self.dy, self.scale, self.mirror, self.tilt, self.stretch
        if self.file is not None and transformation != (0, 0, 1, False, 0, None):
            raise ValueError(
                "a target has both a file and a transformation. Fix: leave out file, or leave out "
                "dx, dy, scale, mirror, tilt and stretch."
            )
        return self

    def is_shift_below(self, limit: float, shape: tuple[int, ...]) -> bool:
        """Return whether the target only shifts maps, by less than a number of pixels each way.

        Args:
            limit: number of pixels.
            shape: height and width of the maps.
        """
        height, width = shape
        only_shift = Target(dx=self.dx, dy=self.dy) == self
        return only_shift and max(abs(self.dy) * height, abs(self.dx) * width) < limit

    def __str__(self) -> str:
        """Return a short name of the target, such as ``shift 0.2, 0``."""
        if self.file is not None:
            return Path(self.file).name
        parts = []
        if self.scale != 1:
            parts.append(f"scale {self.scale:g}")
        if self.mirror:
            parts.append("mirror")
        if self.tilt:
            parts.append(f"tilt {self.tilt:g}")
        if self.dx or self.dy or not parts:
            parts.append(f"shift {self.dx:g}, {self.dy:g}")
        if self.stretch is not None:
            parts.append(f"stretch {self.stretch:g}")
        return ", ".join(parts)


def resolve_target(target: Target) -> Target:
    """Return a copy of a target with its file's absolute path and content hash filled in.

    A target without a file is returned unchanged.

    Raises:
        UserError: the file cannot be read.
    """
    if target.file is None:
        return target
    path = user_path(target.file).absolute()
    if not path.is_file():
        raise UserError(_no_file(target.file))
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(_no_file(target.file)) from error
    return target.model_copy(update={"file": str(path), "content_hash": digest})


def _no_file(path: str) -> str:
    """Return the error text for a file that does not exist."""
    return f"target.file: no such file ({path!r}). Fix: correct the path."


def target_map(label: np.ndarray, target: Target) -> np.ndarray:
    """Compute the target map of one sample.

    Args:
        label: the sample's label, (y, x); bool for a mask, else values.
        target: transformation of the label, or file that replaces it.

    Returns:
        (y, x) with the label's dtype.  Pixels that come from outside the image are background in a
        mask, and repeat the values at the border in other maps.

    Raises:
        UserError: the file is missing or unreadable, or its map has another size than the label, or
            a mask is to be tilted or stretched.
    """
    height, width = label.shape
    if target.file is not None:
        return _from_file(user_path(target.file), label)
    mask = label.dtype == bool
    if mask and (target.tilt or target.stretch is not None):
        raise UserError(
            f"target: a mask has no values to tilt or stretch ({target}). Fix: leave out tilt and "
            "stretch."
        )
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    if mask and label.any():
        centre = np.argwhere(label).mean(0)
    # Scaling moves a pixel i of the label to centre + scale (i - centre).  The scaled map is then
    # mirrored and shifted.
    shift = np.array([target.dy * height, target.dx * width])
    flip = np.array([1.0, -1.0 if target.mirror else 1.0])
    middle = np.array([0.0, (width - 1) if target.mirror else 0.0])
    # `affine_transform` needs the inverse of this mapping.  The inverse gives, for each pixel o of
    # the moved map, the pixel i of the label:
    # i = centre + (flip (o - shift - middle) - centre) / scale.
    matrix = flip / target.scale
    offset = centre - (flip * (shift + middle) + centre) / target.scale
    values = label.astype(np.float64)
    moved = affine_transform(
        values,
        np.diag(matrix),
        offset,
        order=0 if mask else 1,
        # The mode "constant" would blank a pixel as soon as its centre is outside, by any fraction.
        mode="grid-constant" if mask else "nearest",
        cval=0.0,
    )
    if mask:
        return moved > 0.5
    if target.tilt:
        moved = moved + target.tilt * values.std() * np.linspace(-0.5, 0.5, width)
    if target.stretch is not None:
        middle_value, half = (moved.max() + moved.min()) / 2, (moved.max() - moved.min()) / 2
        if half > 0:
            moved = values.mean() + (moved - middle_value) * target.stretch * values.std() / half
    return moved.astype(label.dtype)


def _from_file(path: Path, label: np.ndarray) -> np.ndarray:
    """Read a target map from a file, in the size and dtype of the label."""
    if not path.is_file():
        raise UserError(_no_file(str(path)))
    mask = label.dtype == bool
    if not mask and path.suffix != ".npy":
        raise UserError(
            f"target.file: an image file cannot hold a map in the labeler's units, which this "
            f"property needs ({str(path)!r}). Fix: give a .npy file with a map in these units."
        )
    shape = _shape_of(path)
    if shape != label.shape:
        raise UserError(
            f"target.file: {shape[0]} x {shape[1]} pixels, but the images have {label.shape[0]} x "
            f"{label.shape[1]} ({str(path)!r}). Fix: resize the map to the size of the images."
        )
    values = read_map(
        path, FOREGROUND.name if mask else DEPTH.name, (label.shape[0], label.shape[1])
    )
    if np.isnan(values).any():
        missing = int(np.isnan(values).sum())
        raise UserError(
            f"target.file: {counted(missing, 'pixel')} {verb(missing)} NaN ({str(path)!r}). Fix: "
            "give every pixel a target value."
        )
    return values > 0.5 if mask else values.astype(label.dtype)


def _shape_of(path: Path) -> tuple[int, int]:
    """Return the height and width of a map file, without reading its values."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.suffix == ".npy":
            shape = np.load(path, allow_pickle=False, mmap_mode="r").shape
            if len(shape) < 2:
                raise ValueError(f"file: array of shape {shape} has no height and width")
            return int(shape[0]), int(shape[1])
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise UserError(
            f"target.file: not a readable map of height and width ({str(path)!r}). "
            "Fix: give a PNG image or a NPY array of 2 dimensions."
        ) from error
