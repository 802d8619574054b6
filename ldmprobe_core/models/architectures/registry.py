"""Registry that maps names of diffusers pipeline classes to `Architecture` classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.models.architectures.flux import Flux
from ldmprobe_core.models.architectures.flux_2 import Flux2, Flux2Klein
from ldmprobe_core.models.architectures.pixart import PixArt, PixArtAlpha
from ldmprobe_core.models.architectures.qwen_image import QwenImage
from ldmprobe_core.models.architectures.sana import Sana
from ldmprobe_core.models.architectures.stable_diffusion import (
    LatentConsistency,
    StableDiffusion,
    StableDiffusionXL,
)
from ldmprobe_core.models.architectures.stable_diffusion_3 import StableDiffusion3
from ldmprobe_core.study.extensions.entry_points import ARCHITECTURE_POINTS, load_entry_points

_ARCHITECTURES: dict[str, type[Architecture]] = {}

ArchitectureClass = TypeVar("ArchitectureClass", bound=type[Architecture])


def register_architecture(
    *pipeline_names: str,
) -> Callable[[ArchitectureClass], ArchitectureClass]:
    """Return a class decorator that registers an `Architecture` for diffusers pipeline classes.

    If a name is registered twice, the later registration replaces the earlier one.  Registrations
    hold for one process, so put the decorated class in a module that worker processes import too.

    Args:
        pipeline_names: names of the pipeline classes, as in ``model_index.json``.

    Example::

        @register_architecture("MyPipeline")
        class MyArchitecture(UNetArchitecture): ...
    """

    def register(architecture: ArchitectureClass) -> ArchitectureClass:
        _ARCHITECTURES.update(dict.fromkeys(pipeline_names, architecture))
        return architecture

    return register


register_architecture("StableDiffusionPipeline")(StableDiffusion)
register_architecture("LatentConsistencyModelPipeline")(LatentConsistency)
register_architecture("StableDiffusionXLPipeline")(StableDiffusionXL)
register_architecture("StableDiffusion3Pipeline")(StableDiffusion3)
register_architecture("PixArtAlphaPipeline")(PixArtAlpha)
register_architecture("PixArtSigmaPipeline")(PixArt)
register_architecture("FluxPipeline")(Flux)
register_architecture("Flux2Pipeline")(Flux2)
register_architecture("Flux2KleinPipeline")(Flux2Klein)
register_architecture("SanaPipeline")(Sana)
register_architecture("QwenImagePipeline")(QwenImage)


def detect_architecture(folder: Path) -> Architecture:
    """Build the `Architecture` for the pipeline class that ``model_index.json`` of a folder names.

    Args:
        folder: model folder in the layout of diffusers.

    Raises:
        UserError: the folder is not a diffusers pipeline, or its pipeline class is not registered.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"model.source: {folder / 'model_index.json'} does not name a pipeline "
            f"({type(error).__name__}). Fix: give a folder written by save_pretrained"
        ) from error
    if not isinstance(name, str) or not _is_registered(name):
        raise UserError(f"model.source: {_unsupported_class_with_remedy(name)}")
    return _ARCHITECTURES[name].from_folder(name, folder)


def architecture_of(pipeline: Any) -> Architecture:
    """Build the `Architecture` of a loaded diffusers pipeline.

    The architecture is that of the pipeline's class, or of the nearest registered base class.

    Raises:
        UserError: neither the pipeline's class nor any of its base classes is registered.
    """
    for base in type(pipeline).__mro__:
        if _is_registered(base.__name__):
            return _ARCHITECTURES[base.__name__].from_pipeline(pipeline)
    raise UserError(f"pipeline: {_unsupported_class_with_remedy(type(pipeline).__name__)}")


def _is_registered(name: str) -> bool:
    """Return whether a class has a registered architecture; load its entry point if needed."""
    if name not in _ARCHITECTURES:
        load_entry_points(ARCHITECTURE_POINTS, name, "model.source")
    return name in _ARCHITECTURES


def _unsupported_class_with_remedy(name: object) -> str:
    """Return the error text for a pipeline class without a registered architecture."""
    return (
        f"class {name!s:.60} cannot be probed. Fix: use one of {', '.join(_ARCHITECTURES)}, or "
        "install the package that offers its architecture"
    )
