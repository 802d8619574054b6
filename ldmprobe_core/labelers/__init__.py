"""Labelers: what reads a property off an image.

A `Labeler` takes uint8 images and gives one map an image, or class scores.  Labelers are known by
name; `load_labeler` finds them.  To add one, write a class with this protocol and a `Kind` that
checks and loads it, and enter the kind in `_KINDS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers import classes, depth, foreground, shading, tabletop
from ldmprobe_core.study import MAP_PROPERTIES, Reader, Study

MAPS = "maps"
"""Not a labeler: the exact maps that lie beside pictures of one's own."""


class Labeler(Protocol):
    """Reads one property.

    Attributes:
        units: of the map, in words.
        classes: names of the classes, in the order of the scores; empty for a map.
    """

    units: str
    classes: tuple[str, ...]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Label images (n, y, x, rgb) uint8; what one is given does not depend on the others.

        Returns:
            float32: a map (n, y, x) where larger depth is farther, foreground is in 0..1 and
            shading is at least 0; or class probabilities (n, class).
        """
        ...


@dataclass(frozen=True)
class Kind:
    """How a labeler is found and loaded.

    Attributes:
        find: checks packages and weights without loading them; gives the files of the weights, by
            which results of other weights are told apart, none where there are none.
        load: loads it onto a device.
    """

    find: Callable[[Reader], list[Path]]
    load: Callable[[Reader, torch.device], Labeler]


_KINDS: dict[str, dict[str, Kind]] = {
    "foreground": {
        "tabletop": Kind(tabletop.find, tabletop.load_foreground),
        "tracer": Kind(foreground.find_tracer, foreground.load_tracer),
        "inspyrenet": Kind(foreground.find_inspyrenet, foreground.load_inspyrenet),
    },
    "depth": {
        "tabletop": Kind(tabletop.find, tabletop.load_depth),
        "midas": Kind(depth.find_midas, depth.load_midas),
        "depth-anything": Kind(depth.find, depth.load),
        "transformers": Kind(depth.find, depth.load),
    },
    "shading": {
        "tabletop": Kind(tabletop.find, tabletop.load_shading),
        "retinex": Kind(shading.find_retinex, shading.load_retinex),
        "marigold": Kind(shading.find_marigold, shading.load_marigold),
        "intrinsic": Kind(shading.find_intrinsic, shading.load_intrinsic),
    },
    "class": {
        "tabletop": Kind(tabletop.find, tabletop.load_classes),
        "vgg16": Kind(classes.find_vgg16, classes.load_vgg16),
        "transformers": Kind(classes.find, classes.load),
    },
}


def load_labeler(prop: str, reader: Reader, device: torch.device) -> Labeler:
    """The labeler of this name for this property.

    Raises:
        UserError: there is no such labeler, or its package or weights are missing.
    """
    require_known(prop, reader)
    return _KINDS[prop][reader.name].load(reader, device)


def require_known(prop: str, reader: Reader) -> None:
    """Raise `UserError` where the property has no labeler of this name."""
    if reader.name not in _KINDS[prop]:
        known = ", ".join(sorted(_KINDS[prop]))
        raise UserError(f"labels.{prop} is {reader.name!r}: no such labeler; there is {known}")


def check_labeler(prop: str, reader: Reader) -> str:
    """Check that a labeler can be loaded here, without loading it.

    Returns:
        16 hex digits of its weights' files.

    Raises:
        UserError: its package or weights are missing.
    """
    try:
        files = _KINDS[prop][reader.name].find(reader)
    except UserError as error:
        raise UserError(f"labels.{prop} is {reader.name!r}: {error}") from error
    digest = hashlib.sha256(reader.name.encode())
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def labelers_of(study: Study) -> dict[str, Reader]:
    """Property to labeler, for every property that a labeler reads."""
    named = {prop: getattr(study.labels, prop) for prop in MAP_PROPERTIES}
    named["class"] = study.labels.classes
    return {prop: r for prop, r in named.items() if r is not None and r.name != MAPS}
