"""Labelers of shading: Marigold and intrinsic (neural networks), and retinex (a filter)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.weights import (
    files_of,
    find_folder,
    published_repository,
    read_pretrained,
    refuse_revision,
    require_package,
    require_tensors,
)
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.readers.hub_cache import PublishedSource

_SCALES = (15 / 512, 80 / 512, 250 / 512)
"""Standard deviations of the Gaussian blurs in retinex, relative to the longer image side.

They are 15, 80 and 250 pixels (Jobson, Rahman & Woodell 1997) for an image of 512 pixels.
"""
_MARIGOLD = "prs-eth/marigold-iid-lighting-v1-1"
_MARIGOLD_NETWORKS = ("unet", "vae", "text_encoder")


class RetinexLabeler:
    """Shading labeler that estimates illumination by multi-scale retinex.

    Retinex assumes that smooth variation of the luminance comes from light (Jobson, Rahman &
    Woodell 1997).  The label is the geometric mean of the linear luminance after blurs at several
    scales.  It is an approximation, which cannot tell the edge of a shadow from the edge of a
    painted area.
    """

    units = "smoothed luminance (retinex illumination), 0..1"
    classes: tuple[str, ...] = ()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute shading maps (n, y, x) float32 from images (n, y, x, rgb) uint8."""
        return np.stack([self._label(image) for image in images]).astype(np.float32)

    def _label(self, image: np.ndarray) -> np.ndarray:
        srgb = image / 255.0
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        # These are the weights of linear red, green and blue in the luminance of ITU-R BT.709.
        luminance = linear @ (0.2126, 0.7152, 0.0722)
        side = max(luminance.shape)
        blurred = [gaussian_filter(luminance, share * side, mode="nearest") for share in _SCALES]
        return np.exp(np.mean(np.log(np.maximum(blurred, 1e-4)), axis=0))


class MarigoldLabeler:
    """Shading labeler that uses the luminance of Marigold's predicted shading (Ke et al. 2025)."""

    units = "shading, luminance, linear, up to scale"
    classes: tuple[str, ...] = ()

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.target_index = pipeline.target_properties["target_names"].index("shading")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute shading maps (n, y, x) float32; all images use the same initial noise."""
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
    """Shading labeler that uses the package intrinsic (Careaga & Aksoy 2023).

    The package predicts 1 / (s + 1) for a shading s; the label is s.
    """

    units = "shading, linear, up to scale"
    classes: tuple[str, ...] = ()

    def __init__(self, models: Any, device: torch.device) -> None:
        self.models, self.device = models, device

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute shading maps (n, y, x) float32 from images (n, y, x, rgb) uint8."""
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
    """Return no files, since retinex has no weights; raise if the study names some."""
    refuse_revision(spec)
    if spec.weights is not None:
        raise UserError(
            f"the labeler retinex takes no weights ({spec.weights!r}). Fix: leave the key "
            "weights out"
        )
    return []


def load_retinex(spec: LabelerSpec, device: torch.device) -> RetinexLabeler:
    """Build the retinex labeler, which always computes on the CPU."""
    return RetinexLabeler()


def locate_marigold(spec: LabelerSpec) -> list[Path]:
    """List the files of a Marigold pipeline in a folder or in the Hugging Face cache.

    Raises:
        UserError: the weights are missing or incomplete.
    """
    folder = find_folder(spec, _MARIGOLD)
    _require_networks(folder)
    return files_of(folder)


def _require_networks(folder: Path) -> None:
    """Check that a pipeline folder has every tensor of the networks in its ``model_index.json``."""
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        kinds = {}
        for name in _MARIGOLD_NETWORKS:
            library, class_name = index[name]
            kinds[name] = getattr(libraries[library], class_name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"the labeler's weights: model_index.json in {str(folder)!r} does not name the "
            f"networks {', '.join(_MARIGOLD_NETWORKS)} ({type(error).__name__}). Fix: give the "
            "folder of a Marigold pipeline"
        ) from error
    for name, kind in kinds.items():
        require_tensors(kind, folder / name)


def published_marigold(spec: LabelerSpec) -> list[PublishedSource]:
    """List the hub repository of a Marigold pipeline."""
    return published_repository(spec, _MARIGOLD)


def load_marigold(spec: LabelerSpec, device: torch.device) -> MarigoldLabeler:
    """Load a Marigold pipeline that predicts shading, from a folder or the Hugging Face cache.

    Raises:
        UserError: the weights are missing, incomplete, do not load, or do not predict shading.
    """
    from diffusers import MarigoldIntrinsicsPipeline

    folder = find_folder(spec, _MARIGOLD)
    _require_networks(folder)
    pipeline = read_pretrained(MarigoldIntrinsicsPipeline, folder, use_safetensors=True)
    names = (pipeline.target_properties or {}).get("target_names", [])
    if "shading" not in names:
        raise UserError(
            f"labels.shading.weights: {str(folder)!r} does not predict shading, only "
            f"{', '.join(names) or 'unnamed maps'}. Fix: use the lighting variant of Marigold"
        )
    pipeline.set_progress_bar_config(disable=True)
    return MarigoldLabeler(pipeline.to(device))


def locate_intrinsic(spec: LabelerSpec) -> list[Path]:
    """Check that the package intrinsic, which loads its own weights, is installed.

    Returns:
        an empty list of weight files.

    Raises:
        UserError: the package is missing, or ``weights`` is neither ``paper_weights`` nor ``v2``.
    """
    require_package(
        "intrinsic",
        "pip install https://github.com/compphoto/Intrinsic/archive/main.zip (academic licence)",
    )
    refuse_revision(spec)
    if spec.weights not in (None, "paper_weights", "v2"):
        raise UserError(
            f"the labeler's key weights is {spec.weights!r}, but the package intrinsic loads only "
            "its own two versions of weights. Fix: set weights to paper_weights or v2"
        )
    return []


def load_intrinsic(spec: LabelerSpec, device: torch.device) -> IntrinsicLabeler:
    """Load the labeler that uses the package intrinsic; this package may download its weights."""
    locate_intrinsic(spec)
    from intrinsic.pipeline import load_models

    models = load_models(spec.weights or "paper_weights", stage="gray", device=str(device))
    return IntrinsicLabeler(models, device)
