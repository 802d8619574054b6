"""Depth labelers: transformers' monocular estimators; larger values are farther."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.image_batches import in_batches, resized
from ldmprobe_core.labelers.weights import files_of, find_folder
from ldmprobe_core.study.sections import LabelerSpec

_MIDAS = "Intel/dpt-large"
_MIDAS_MEAN, _MIDAS_DEVIATION = 15.740597, 9.281932
"""DPT-Large's inverse depth over the paper's images, as its code normalises it."""

_INVERSE = {"dpt": True, "glpn": False}
"""Whether a model type gives inverse depth (nearer is larger) or depth itself.

Types whose sign, padding and cropping are unverified are refused.
"""


class DepthLabeler:
    """Labeler around a transformers depth model.

    Attributes:
        sign: -1 if the model gives inverse depth, else 1.
        shift, scale: applied to the signed value: (value - shift) / scale.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self, model: Any, processor: Any, inverse: bool, shift: float = 0.0, scale: float = 1.0
    ) -> None:
        self.model, self.processor = model, processor
        self.sign, self.shift, self.scale = (-1 if inverse else 1), shift, scale
        self.units = "inverse depth, negated, up to scale and shift" if inverse else "metre"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `ldmprobe_core.labelers.base.Labeler`."""
        return in_batches(images, 8, self._label)

    @torch.no_grad()
    def _label(self, images: np.ndarray) -> np.ndarray:
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        predicted = self.model(**inputs).predicted_depth
        maps = resized(predicted, (images.shape[1], images.shape[2]), "bicubic")
        return self.sign * (maps - self.shift) / self.scale


def locate_transformers_depth(spec: LabelerSpec) -> list[Path]:
    """Find the files of a folder or hub id."""
    return _files(find_folder(spec))


def locate_midas(spec: LabelerSpec) -> list[Path]:
    """Find the files of a folder or hub id; without one, of DPT-Large."""
    return _files(find_folder(spec, _MIDAS))


def _files(folder: Path) -> list[Path]:
    _is_inverse(folder)
    return files_of(folder)


def load_transformers_depth(spec: LabelerSpec, device: torch.device) -> DepthLabeler:
    """Load Depth Anything V2, or another depth estimator of transformers."""
    folder = find_folder(spec)
    return DepthLabeler(*_load(folder, device), inverse=_is_inverse(folder))


def load_midas(spec: LabelerSpec, device: torch.device) -> DepthLabeler:
    """Load DPT (MiDaS 3), Large or Hybrid; normalised as the paper's code does."""
    folder = find_folder(spec, _MIDAS)
    parts = _load(folder, device)
    return DepthLabeler(*parts, inverse=True, shift=_MIDAS_MEAN, scale=_MIDAS_DEVIATION)


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    try:
        model = AutoModelForDepthEstimation.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"weights {str(folder)!r} do not load ({reason}). Fix: fetch them again"
        ) from error
    return model.to(device).eval().requires_grad_(False), processor


def _is_inverse(folder: Path) -> bool:
    """Whether the model of a folder gives inverse depth, by its config.

    Raises:
        UserError: the sign of its model type is not known.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"weights {str(folder)!r}: config.json cannot be read ({type(error).__name__}). Fix: "
            "fetch it again"
        ) from error
    kind = config.get("model_type")
    if kind in ("depth_anything", "prompt_depth_anything"):
        return bool(config.get("depth_estimation_type", "relative") == "relative")
    if kind not in _INVERSE:
        known = ", ".join([*_INVERSE, "depth_anything"])
        raise UserError(
            f"weights {str(folder)!r}: it is not known whether models of type {kind!r} give depth "
            f"or inverse depth. Fix: use a model of type {known}"
        )
    return _INVERSE[kind]
