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
    """Function from images to labels of one property.

    Attributes:
        units: units of the map, in words.
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
    """Return no weight files, for labelers without weights."""
    return []


@dataclass(frozen=True)
class LabelerEntry:
    """Functions that check and load a labeler.

    Attributes:
        load: loads the labeler onto a device.
        locate_weights: checks packages and weights without loading them, and returns the weights'
            files, whose digest distinguishes runs with different weights.  It raises `UserError`
            with a remedy if a package or file is missing.
    """

    load: Callable[[LabelerSpec, torch.device], Labeler]
    locate_weights: Callable[[LabelerSpec], list[Path]] = no_weights
