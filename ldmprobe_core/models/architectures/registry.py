"""Architectures by the pipeline class that a model folder names."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.models.architectures.flux import Flux
from ldmprobe_core.models.architectures.pixart import PixArt
from ldmprobe_core.models.architectures.stable_diffusion import StableDiffusionXL
from ldmprobe_core.models.architectures.stable_diffusion_3 import StableDiffusion3

ARCHITECTURES: dict[str, tuple[type[Architecture], type[DiffusionPipeline]]] = {
    "StableDiffusionPipeline": (Architecture, StableDiffusionPipeline),
    "StableDiffusionXLPipeline": (StableDiffusionXL, StableDiffusionXLPipeline),
    "StableDiffusion3Pipeline": (StableDiffusion3, StableDiffusion3Pipeline),
    "PixArtAlphaPipeline": (PixArt, PixArtAlphaPipeline),
    "PixArtSigmaPipeline": (PixArt, PixArtSigmaPipeline),
    "FluxPipeline": (Flux, FluxPipeline),
}


def detect_architecture(folder: Path) -> Architecture:
    """The family of a model folder.

    Raises:
        UserError: it is not a diffusers pipeline of a family that can be probed.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"model.source: {folder / 'model_index.json'} does not name a pipeline "
            f"({type(error).__name__}): give a folder written by save_pretrained"
        ) from error
    if name not in ARCHITECTURES:
        raise UserError(
            f"model.source: a {name!s:.60} cannot be probed; supported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    kind, pipeline = ARCHITECTURES[name]
    return kind(folder, pipeline)
