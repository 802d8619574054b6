"""The protocol of a labeler, and how one is found and loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ldmprobe_core.study.sections import LabelerSpec


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
class LabelerEntry:
    """How a labeler is found and loaded.

    Attributes:
        locate_weights: checks packages and weights without loading them; gives the files of the
            weights, by which results of other weights are told apart, none where there are none.
        load: loads it onto a device.
    """

    locate_weights: Callable[[LabelerSpec], list[Path]]
    load: Callable[[LabelerSpec, torch.device], Labeler]
