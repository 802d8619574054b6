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
from ldmprobe_core.labelers.weights import files_of, find_folder, published_repository
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
    """List the weight and config files of the depth estimator that the study names."""
    return _files(find_folder(spec))


def locate_midas(spec: LabelerSpec) -> list[Path]:
    """List the weight and config files of a DPT model, by default those of DPT-Large."""
    return _files(find_folder(spec, _MIDAS))


def midas_memory(size: tuple[int, int]) -> CallMemory:
    """Return the memory of a call of DPT-Large, whose input has 384 x 384 pixels for any image."""
    return CallMemory(_BATCH, 283_200_000, 84_000_000)


def published_midas(spec: LabelerSpec) -> list[PublishedSource]:
    """List the hub repository of a DPT model, by default that of DPT-Large."""
    return published_repository(spec, _MIDAS)


def _files(folder: Path) -> list[Path]:
    """List a depth estimator's files; raise if it is unknown whether it gives inverse depth."""
    _is_inverse(folder)
    return files_of(folder)


def load_transformers_depth(spec: LabelerSpec, device: torch.device) -> DepthLabeler:
    """Load Depth Anything V2, or another depth estimator of transformers."""
    folder = find_folder(spec)
    return DepthLabeler(*_load(folder, device), inverse=_is_inverse(folder))


def load_midas(spec: LabelerSpec, device: torch.device) -> DepthLabeler:
    """Load DPT (MiDaS 3), Large or Hybrid, with the normalisation of Chen et al. (2023)."""
    folder = find_folder(spec, _MIDAS)
    parts = _load(folder, device)
    return DepthLabeler(*parts, inverse=True, shift=_MIDAS_MEAN, scale=_MIDAS_DEVIATION)


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """Load a depth estimator and its image processor; raise `UserError` if this fails."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    try:
        model = AutoModelForDepthEstimation.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"labels.depth.weights: {str(folder)!r} does not load ({reason}). Fix: fetch the "
            "weights again"
        ) from error
    return model.to(device).eval().requires_grad_(False), processor


def _is_inverse(folder: Path) -> bool:
    """Return whether the depth estimator in a folder gives inverse depth, according to its config.

    Raises:
        UserError: the config cannot be read, or the model type is not in `_INVERSE`.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the labeler's weights: config.json in {str(folder)!r} cannot be read "
            f"({type(error).__name__}). Fix: fetch this file again"
        ) from error
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
    return _INVERSE[kind]
