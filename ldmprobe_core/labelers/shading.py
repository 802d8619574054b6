"""Shading labelers: intrinsic decompositions, and a classical approximation without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.weights import files_of, find_folder, refuse_revision, require_package
from ldmprobe_core.study.sections import LabelerSpec

_SCALES = (15 / 512, 80 / 512, 250 / 512)
"""Scales of 15, 80 and 250 pixels (Jobson, Rahman & Woodell 1997), as shares of the longer side."""
_MARIGOLD = "prs-eth/marigold-iid-lighting-v1-1"


class RetinexLabeler:
    """Labeler of illumination by multi-scale retinex, an approximation of shading.

    Retinex attributes the smooth variation of the luminance to light (Jobson, Rahman & Woodell
    1997): here the geometric mean over scales of the blurred linear luminance.  It confuses edges
    of shade with edges of paint.
    """

    units = "smoothed luminance (retinex illumination), 0..1"
    classes: tuple[str, ...] = ()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `ldmprobe_core.labelers.base.Labeler`."""
        return np.stack([self._label(image) for image in images]).astype(np.float32)

    def _label(self, image: np.ndarray) -> np.ndarray:
        srgb = image / 255.0
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        luminance = linear @ (0.2126, 0.7152, 0.0722)  # ITU-R BT.709
        side = max(luminance.shape)
        blurred = [gaussian_filter(luminance, share * side, mode="nearest") for share in _SCALES]
        return np.exp(np.mean(np.log(np.maximum(blurred, 1e-4)), axis=0))


class MarigoldLabeler:
    """Labeler around Marigold's lighting model (Ke et al. 2025): luminance of its shading."""

    units = "shading, luminance, linear, up to scale"
    classes: tuple[str, ...] = ()

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.target_index = pipeline.target_properties["target_names"].index("shading")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `ldmprobe_core.labelers.base.Labeler`; every image gets the same noise."""
        return np.stack([self._label(image) for image in images]).astype(np.float32)

    @torch.no_grad()
    def _label(self, image: np.ndarray) -> np.ndarray:
        shading = self.pipeline(
            (image / 255.0).astype(np.float32)[None],
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).prediction[self.target_index]
        return np.maximum(shading @ (0.2126, 0.7152, 0.0722), 0)


class IntrinsicLabeler:
    """Labeler of grey ordinal shading s (Careaga & Aksoy 2023), from its 1 / (s + 1)."""

    units = "shading, linear, up to scale"
    classes: tuple[str, ...] = ()

    def __init__(self, models: Any, device: torch.device) -> None:
        self.models, self.device = models, device

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `ldmprobe_core.labelers.base.Labeler`."""
        return np.stack([self._label(image) for image in images]).astype(np.float32)

    def _label(self, image: np.ndarray) -> np.ndarray:
        from intrinsic.pipeline import run_gray_pipeline

        inverse = run_gray_pipeline(
            self.models,
            (image / 255.0).astype(np.float32),
            resize_conf=None,
            maintain_size=True,
            device=str(self.device),
        )["gry_shd"]
        inverse = np.clip(np.squeeze(inverse), 1e-4, 1)
        return 1 / inverse - 1


def locate_retinex(spec: LabelerSpec) -> list[Path]:
    """Check that no weights are given, since retinex has none."""
    refuse_revision(spec)
    if spec.weights is not None:
        raise UserError(f"it takes no weights ({spec.weights!r}). Fix: leave weights out")
    return []


def load_retinex(spec: LabelerSpec, device: torch.device) -> RetinexLabeler:
    """Build the retinex labeler, which always computes on the CPU."""
    return RetinexLabeler()


def locate_marigold(spec: LabelerSpec) -> list[Path]:
    """Find the files of a Marigold pipeline."""
    return files_of(find_folder(spec, _MARIGOLD))


def load_marigold(spec: LabelerSpec, device: torch.device) -> MarigoldLabeler:
    """Load Marigold from a folder or hub id."""
    from diffusers import MarigoldIntrinsicsPipeline

    folder = find_folder(spec, _MARIGOLD)
    try:
        pipeline: Any = MarigoldIntrinsicsPipeline.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"weights {str(folder)!r} do not load ({reason}). Fix: fetch them again"
        ) from error
    names = (pipeline.target_properties or {}).get("target_names", [])
    if "shading" not in names:
        raise UserError(
            f"weights {str(folder)!r} predict no shading ({', '.join(names) or 'nothing named'}). "
            "Fix: use the lighting variant"
        )
    pipeline.set_progress_bar_config(disable=True)
    return MarigoldLabeler(pipeline.to(device))


def locate_intrinsic(spec: LabelerSpec) -> list[Path]:
    """Find the package, which loads its own weights: ``paper_weights`` or ``v2``."""
    require_package(
        "intrinsic",
        "pip install https://github.com/compphoto/Intrinsic/archive/main.zip (academic licence)",
    )
    refuse_revision(spec)
    if spec.weights not in (None, "paper_weights", "v2"):
        raise UserError(
            f"weights is {spec.weights!r}, and the package loads its own. Fix: set it to "
            "paper_weights or v2"
        )
    return []


def load_intrinsic(spec: LabelerSpec, device: torch.device) -> IntrinsicLabeler:
    """Load Intrinsic by the package's own loader, from torch's cache or its release page."""
    locate_intrinsic(spec)
    from intrinsic.pipeline import load_models

    models = load_models(spec.weights or "paper_weights", stage="gray", device=str(device))
    return IntrinsicLabeler(models, device)
