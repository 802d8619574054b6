"""Labelers of depth that use monocular depth estimators of the library transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.base import CallMemory
from ldmprobe_core.labelers.image_batches import in_batches, resized
from ldmprobe_core.labelers.weights import (
    files_of,
    find_folder,
    load_network,
    published_repository,
    read_pretrained,
    require_tensors,
)
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.readers.hub_cache import PublishedSource

_MIDAS = "Intel/dpt-large"
_MIDAS_MEAN, _MIDAS_DEVIATION = 15.740597, 9.281932
"""Mean and standard deviation by which the output of DPT-Large is normalised.

The code of the paper (Chen, Viégas & Wattenberg 2023) normalises depth with these values.
"""

_BATCH = 8

_INVERSE = {"dpt": True, "glpn": False}
"""Model type in transformers to True if its models give inverse depth (larger is nearer).

Types that are not listed are refused, since the sign of their output has not been verified.
"""

_MIDAS_BACKBONES = (None, "bit", "beit", "swin", "swinv2")
"""Model types of the backbones of MiDaS 3 and 3.1, whose DPT models give inverse depth.

None is the vision transformer of DPT itself.  DPT models on other backbones, such as those of
DINOv2 for NYU and KITTI, are trained on depth in metres, and their configs do not say so.
"""


class DepthLabeler:
    """Depth labeler that uses a depth estimator of transformers.

    The labels are ``sign * (output - shift) / scale`` for the output of the model.

    Attributes:
        sign: -1 if the model gives inverse depth, else 1.
        shift, scale: numbers that normalise the model's output.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self, model: Any, processor: Any, inverse: bool, shift: float = 0.0, scale: float = 1.0
    ) -> None:
        self.model, self.processor = model, processor
        self.sign, self.shift, self.scale = (-1 if inverse else 1), shift, scale
        self.units = "inverse depth, negated, up to scale and shift" if inverse else "metre"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute depth maps (n, y, x) float32 from images; larger values mean farther."""
        return in_batches(images, _BATCH, self._label)

    @torch.no_grad()
    def _label(self, images: np.ndarray) -> np.ndarray:
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        predicted = self.model(**inputs).predicted_depth
        maps = resized(predicted, (images.shape[1], images.shape[2]), "bicubic")
        return self.sign * (maps - self.shift) / self.scale


def locate_transformers_depth(spec: LabelerSpec) -> list[Path]:
    """List the weight and config files of the depth estimator that the study names.

    Raises:
        UserError: the weights are missing or incomplete, or the sign of the output is unknown.
    """
    return _files(find_folder(spec))


def locate_midas(spec: LabelerSpec) -> list[Path]:
    """List the weight and config files of a DPT model, by default those of DPT-Large.

    Raises:
        UserError: the weights are missing or incomplete, or not those of a DPT model for inverse
            depth.
    """
    return _files(_midas_folder(spec))


def _midas_folder(spec: LabelerSpec) -> Path:
    """Find the folder of a DPT model, by default DPT-Large; raise if it holds another model."""
    folder = find_folder(spec, _MIDAS)
    kind = _config(folder).get("model_type")
    if kind != "dpt":
        raise UserError(
            f"the labeler's weights {str(folder)!r} are a model of type {kind!r}, but this labeler "
            "normalises the inverse depth of DPT. Fix: use DPT-Large or Hybrid, or the labeler "
            "transformers"
        )
    return folder


def midas_memory(size: tuple[int, int]) -> CallMemory:
    """Return the memory of a call of DPT-Large, whose input has 384 x 384 pixels for any image."""
    return CallMemory(_BATCH, 283_200_000, 84_000_000)


def published_midas(spec: LabelerSpec) -> list[PublishedSource]:
    """List the hub repository of a DPT model, by default that of DPT-Large."""
    return published_repository(spec, _MIDAS)


def _files(folder: Path) -> list[Path]:
    """List a depth estimator's files; raise if they are incomplete, or its sign is unknown."""
    from transformers import AutoModelForDepthEstimation

    _is_inverse(folder)
    require_tensors(AutoModelForDepthEstimation, folder)
    return files_of(folder)


def load_transformers_depth(spec: LabelerSpec, device: torch.device) -> DepthLabeler:
    """Load Depth Anything V2, or another depth estimator of transformers."""
    folder = find_folder(spec)
    inverse = _is_inverse(folder)
    return DepthLabeler(*_load(folder, device), inverse=inverse)


def load_midas(spec: LabelerSpec, device: torch.device) -> DepthLabeler:
    """Load DPT (MiDaS 3), Large or Hybrid, with the normalisation of Chen et al. (2023)."""
    folder = _midas_folder(spec)
    inverse = _is_inverse(folder)
    parts = _load(folder, device)
    return DepthLabeler(*parts, inverse=inverse, shift=_MIDAS_MEAN, scale=_MIDAS_DEVIATION)


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """Load a depth estimator and its image processor; raise `UserError` if this fails."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    model = load_network(AutoModelForDepthEstimation, folder, device)
    return model, read_pretrained(AutoImageProcessor, folder)


def _config(folder: Path) -> dict[str, Any]:
    """Read the config of a model of transformers; raise `UserError` if it is unreadable."""
    try:
        return dict(json.loads((folder / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"the labeler's weights: config.json in {str(folder)!r} cannot be read "
            f"({type(error).__name__}). Fix: fetch this file again"
        ) from error


def _is_inverse(folder: Path) -> bool:
    """Return whether the depth estimator in a folder gives inverse depth, according to its config.

    Raises:
        UserError: the config cannot be read, or the sign of the model's output is unknown.
    """
    config = _config(folder)
    kind = config.get("model_type")
    if kind in ("depth_anything", "prompt_depth_anything"):
        return bool(config.get("depth_estimation_type", "relative") == "relative")
    if kind not in _INVERSE:
        known = ", ".join([*_INVERSE, "depth_anything"])
        raise UserError(
            f"the labeler's weights {str(folder)!r} are a model of type {kind!r}, and it is "
            "unknown whether this type gives depth or inverse depth. Fix: use a model of type "
            f"{known}"
        )
    given = config.get("backbone_config")
    backbone = given.get("model_type") if isinstance(given, dict) else config.get("backbone")
    if kind == "dpt" and backbone not in _MIDAS_BACKBONES:
        raise UserError(
            f"the labeler's weights {str(folder)!r} are a DPT model with the backbone "
            f"{backbone!r:.60}, and its config does not say whether it gives depth or inverse "
            "depth. Fix: use a DPT model of MiDaS, or name a labeler of your own, "
            "package.module:function, that returns larger values for what is farther"
        )
    return _INVERSE[kind]
