"""Lookup of a model's configs and weights on this machine, without fetching."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NoReturn

from huggingface_hub import snapshot_download

from ldmprobe_core.assets import CONFIGS, MODEL_FOLDER
from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.study.model_record import EMBEDDED, RECORD
from ldmprobe_core.study.sections import Model

_KNOWN = {"CompVis/stable-diffusion-v1-4": "stable-diffusion-v1-4"}
"""Hub ids whose configs ship with this package, so that their studies are sized offline."""


def config_folder(model: Model) -> Path:
    """Folder of a model's JSON configs, which need not hold its weights.

    Raises:
        UserError: there is no such model on this machine.
    """
    folder = _local_folder(model) or _cached(model)
    if folder is None and model.source in _KNOWN:
        folder = CONFIGS / _KNOWN[model.source]
    return folder or _not_here(model)


def model_folder(model: Model) -> Path:
    """Folder of a model's files: the one that is given, or that of the hub's cache.

    Raises:
        UserError: there is no such folder.
    """
    return _local_folder(model) or _cached(model) or _not_here(model)


def _not_here(model: Model) -> NoReturn:
    revision = f" --revision {model.revision}" if model.revision else ""
    raise UserError(
        f"model.source {model.source!r} is not on this machine. Fix: fetch it with hf download "
        f"{model.source}{revision}, or give its folder"
    )


def has_weights(folder: Path) -> bool:
    """Whether a model folder holds safetensors weights of its denoiser and its VAE."""
    parts = (detect_architecture(folder).denoiser, "vae")
    return all(any((folder / part).glob("*.safetensors")) for part in parts)


def _local_folder(model: Model) -> Path | None:
    """The model's folder; None for a hub id."""
    is_embedded = model.source == EMBEDDED
    folder = MODEL_FOLDER if is_embedded else Path(model.source).expanduser()
    if is_embedded or (folder / "model_index.json").is_file():
        if model.revision is not None:
            raise UserError(
                f"model.revision: {model.source} is a folder, and only hub ids have revisions "
                f"({model.revision!r:.60}). Fix: leave it out"
            )
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model.source):
        raise UserError(
            f"model.source {model.source!r}: no diffusers model there (model_index.json is "
            "missing). Fix: give 'tabletop', a folder written by save_pretrained, or a hub id"
        )
    return None


def _cached(model: Model) -> Path | None:
    """Folder of a hub id's files in the hub's cache; None if they were not fetched."""
    try:
        return Path(snapshot_download(model.source, revision=model.revision, local_files_only=True))
    except Exception:  # the hub's client raises many types for an absent model
        return None


def fingerprint(folder: Path) -> str:
    """Hash every config and weight file of a model folder, names included; 16 hex digits.

    The record of sampling defaults is left out, since it affects no result by itself.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".safetensors", ".txt", ".model"} and path.name != RECORD:
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
