"""Labelers: what reads a property off an image.

A `Labeler` takes uint8 images and gives one map an image, or class scores.  Labelers are known by
name; `load_labeler` finds them.  To add one, write a class with this protocol and enter its loader
in `_LOADERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers import tabletop
from ldmprobe_core.study import MAP_PROPERTIES, Study


class Labeler(Protocol):
    """Reads one property.

    Attributes:
        units: of the map, in words.
        classes: names of the classes, in the order of the scores; empty for a map.
    """

    units: str
    classes: tuple[str, ...]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Label images (n, y, x, rgb) uint8.

        Returns:
            float32: a map (n, y, x) where larger depth is farther, foreground is in 0..1 and
            shading is at least 0; or class probabilities (n, class).
        """
        ...


_LOADERS: dict[str, dict[str, Callable[[torch.device], Labeler]]] = {
    "foreground": {"tabletop": tabletop.load_foreground},
    "depth": {"tabletop": tabletop.load_depth},
    "shading": {"tabletop": tabletop.load_shading},
    "class": {"tabletop": tabletop.load_classes},
}


def load_labeler(prop: str, name: str, device: torch.device) -> Labeler:
    """The labeler of this name for this property.

    Raises:
        UserError: there is no such labeler, or its weights are missing.
    """
    check_labeler(prop, name)
    return _LOADERS[prop][name](device)


def check_labeler(prop: str, name: str) -> None:
    """Raise `UserError` where the property has no labeler of this name."""
    if name not in _LOADERS[prop]:
        known = ", ".join(sorted(_LOADERS[prop]))
        raise UserError(f"labels.{prop} is {name!r}: no such labeler; there is {known}")


def labelers_of(study: Study) -> dict[str, str]:
    """Property to labeler name, for every property the study labels."""
    named = {prop: getattr(study.labels, prop) for prop in MAP_PROPERTIES}
    named["class"] = study.labels.classes
    return {prop: name for prop, name in named.items() if name is not None}
