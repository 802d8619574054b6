"""Protocol of a labeler, and the registry entry by which one is checked and loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ldmprobe_core.study.sections import LabelerSpec

if TYPE_CHECKING:
    import torch


class Labeler(Protocol):
    """Model that reads one property off images.

    Attributes:
        units: of the map, in words.
        classes: names of the classes, in the order of the scores; empty for a map.
    """

    units: str
    classes: tuple[str, ...]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Label images (n, y, x, rgb) uint8; an image's label does not depend on the others.

        Returns:
            float32: a map (n, y, x), in which larger depth is farther, foreground is in 0..1 and
            shading is at least 0; or class probabilities (n, class).
        """
        ...


def no_weights(spec: LabelerSpec) -> list[Path]:
    """Weight files of a labeler that has none."""
    return []


@dataclass(frozen=True)
class LabelerEntry:
    """How a labeler is checked and loaded.

    Attributes:
        load: loads the labeler onto a device.
        locate_weights: checks packages and weights without loading them, and returns the weights'
            files, whose digest tells runs with different weights apart.  It raises `UserError`
            with a remedy if something is missing.
    """

    load: Callable[[LabelerSpec, torch.device], Labeler]
    locate_weights: Callable[[LabelerSpec], list[Path]] = no_weights
