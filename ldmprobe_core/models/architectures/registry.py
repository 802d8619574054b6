"""Registry of architectures by the name of their diffusers pipeline class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.models.architectures.flux import Flux
from ldmprobe_core.models.architectures.pixart import PixArt, PixArtAlpha
from ldmprobe_core.models.architectures.stable_diffusion import StableDiffusion, StableDiffusionXL
from ldmprobe_core.models.architectures.stable_diffusion_3 import StableDiffusion3

_ARCHITECTURES: dict[str, type[Architecture]] = {}

ArchitectureClass = TypeVar("ArchitectureClass", bound=type[Architecture])


def register_architecture(
    *pipeline_names: str,
) -> Callable[[ArchitectureClass], ArchitectureClass]:
    """Decorate a class to register it as the architecture of pipeline classes.

    A later registration of a name replaces the earlier one.  Worker processes need the registration
    too: put it in a module that they import.

    Args:
        pipeline_names: pipeline classes, as ``model_index.json`` names them.

    Example::

        @register_architecture("MyPipeline")
        class MyArchitecture(UNetArchitecture): ...
    """

    def register(architecture: ArchitectureClass) -> ArchitectureClass:
        _ARCHITECTURES.update(dict.fromkeys(pipeline_names, architecture))
        return architecture

    return register


register_architecture("StableDiffusionPipeline")(StableDiffusion)
register_architecture("StableDiffusionXLPipeline")(StableDiffusionXL)
register_architecture("StableDiffusion3Pipeline")(StableDiffusion3)
register_architecture("PixArtAlphaPipeline")(PixArtAlpha)
register_architecture("PixArtSigmaPipeline")(PixArt)
register_architecture("FluxPipeline")(Flux)


def detect_architecture(folder: Path) -> Architecture:
    """Architecture of a model folder, by the pipeline class that its ``model_index.json`` names.

    Raises:
        UserError: the folder is no diffusers pipeline, or no architecture is registered for it.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"model.source: {folder / 'model_index.json'} does not name a pipeline "
            f"({type(error).__name__}). Fix: give a folder written by save_pretrained"
        ) from error
    if name not in _ARCHITECTURES:
        raise UserError(f"model.source: {_unsupported(name)}")
    return _ARCHITECTURES[name].from_folder(name, folder)


def architecture_of(pipeline: Any) -> Architecture:
    """Architecture of a loaded diffusers pipeline, by its class or the nearest base class.

    Raises:
        UserError: no architecture is registered for any of them.
    """
    for base in type(pipeline).__mro__:
        if base.__name__ in _ARCHITECTURES:
            return _ARCHITECTURES[base.__name__].from_pipeline(pipeline)
    raise UserError(f"pipeline: {_unsupported(type(pipeline).__name__)}")


def _unsupported(name: object) -> str:
    return f"a {name!s:.60} cannot be probed; supported are {', '.join(_ARCHITECTURES)}"
