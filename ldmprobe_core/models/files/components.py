"""Check that a model folder has the components of its pipeline, and that they fit together.

A pipeline class loads the classes that ``model_index.json`` names.  A component that is missing or
of another model would only be noticed when the first batch is generated.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import Architecture

_LIBRARIES = ("diffusers", "transformers")


def check_components(folder: Path, architecture: Architecture) -> None:
    """Check the entries of ``model_index.json``, and the widths of the text encoders' outputs.

    Args:
        folder: model folder in the layout of diffusers.
        architecture: architecture of the model.

    Raises:
        UserError: a component that the pipeline needs is absent or of an unknown or unsuitable
            class, or the denoiser takes text embeddings of another width.
    """
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    text = [
        name
        for name in inspect.signature(architecture.diffusers_class.__init__).parameters
        if name.startswith(("text_encoder", "tokenizer"))
    ]
    for name in (architecture.denoiser, "vae", "scheduler", *text):
        encoder = name.replace("tokenizer", "text_encoder")
        if encoder in architecture.optional_encoders and not _is_named(index.get(encoder)):
            continue
        _require_class(folder, name, index.get(name), architecture)
    present = [name for name in text if _is_named(index.get(name))]
    _check_text_widths(folder, present, architecture)


def absent_components(folder: Path, architecture: Architecture) -> dict[str, None]:
    """Return the optional text encoders, and their tokenizers, that a model folder does not have.

    The methods of diffusers that load a pipeline take their absence only from such arguments.
    """
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    absent = [name for name in architecture.optional_encoders if not _is_named(index.get(name))]
    return dict.fromkeys([*absent, *(n.replace("text_encoder", "tokenizer") for n in absent)])


def _is_named(entry: Any) -> bool:
    """Return whether an entry of ``model_index.json`` has the form [library, class]."""
    return isinstance(entry, list) and len(entry) == 2 and all(entry)


def _require_class(folder: Path, name: str, entry: Any, architecture: Architecture) -> None:
    """Require that an entry of ``model_index.json`` names a class that the pipeline can load."""
    problem = f"model: {folder / 'model_index.json'} has no usable entry for {name}"
    remedy = f"Fix: give a complete {architecture.pipeline_name}, as save_pretrained writes it"
    if not _is_named(entry) or not all(isinstance(part, str) for part in entry):
        raise UserError(f"{problem} ({entry!r:.60}). {remedy}")
    library, kind = entry
    found = getattr(importlib.import_module(library), kind, None) if library in _LIBRARIES else None
    if not isinstance(found, type):
        raise UserError(f"{problem} ({library}.{kind:.60} is unknown). {remedy}")
    if name == architecture.denoiser and not issubclass(found, architecture.network):
        raise UserError(
            f"{problem} ({kind:.60} is not a subclass of {architecture.network.__name__}). {remedy}"
        )


def _check_text_widths(folder: Path, names: list[str], architecture: Architecture) -> None:
    """Check that the text encoders' embeddings have the widths that the denoiser expects."""
    encoders = {}
    for name in names:
        try:
            config = json.loads((folder / name / "config.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            # A missing or damaged config is ignored here, because `check_weights` reports it.
            continue
        if name.startswith("text_encoder") and isinstance(config, dict):
            encoders[name] = config
    for key, needed, given in architecture.text_widths(encoders):
        if needed != given:
            raise UserError(
                f"model: {key} of the {architecture.denoiser} of {folder} is {needed}, but the "
                f"text encoders return embeddings of width {given}. Fix: use components of one "
                "model"
            )
