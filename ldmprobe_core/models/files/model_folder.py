"""Search for a model's configs and weights in local folders and the Hugging Face cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NoReturn

from ldmprobe_core.assets import CONFIGS, MODEL_FOLDER
from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.study.readers.hub_cache import HubRepository, cached_snapshot, is_hub_id
from ldmprobe_core.study.readers.model_record import EMBEDDED
from ldmprobe_core.study.readers.value_types import require_readable_files, user_path
from ldmprobe_core.study.sections import Model

_KNOWN = {"CompVis/stable-diffusion-v1-4": "stable-diffusion-v1-4"}
"""Hugging Face ids of models whose configs this package includes, with the configs' folder.

Studies of these models can be planned on a machine that does not have the models.
"""


def config_folder(model: Model) -> Path:
    """Find a folder with the JSON configs of a model, with or without its weights.

    Raises:
        UserError: the model's configs are not on this machine, or ``model.source`` is invalid.
    """
    folder = _local_folder(model) or cached_snapshot(model.source, model.revision)
    if folder is None and model.source in _KNOWN:
        folder = CONFIGS / _KNOWN[model.source]
    return folder or _not_here(model)


def model_folder(model: Model) -> Path:
    """Find the folder of a model's configs and weights on this machine.

    It is ``model.source`` itself, or the cached copy of a Hugging Face id.

    Raises:
        UserError: the model is not on this machine, or ``model.source`` is invalid.
    """
    return _local_folder(model) or cached_snapshot(model.source, model.revision) or _not_here(model)


def model_repository(model: Model) -> HubRepository | None:
    """Return the hub repository of a model; None if ``model.source`` is a folder.

    Raises:
        UserError: ``model.source`` is invalid.
    """
    return None if _local_folder(model) else HubRepository(model.source, model.revision)


def _not_here(model: Model) -> NoReturn:
    """Raise a `UserError` that names the command to fetch a model that this machine lacks."""
    revision = f" --revision {model.revision}" if model.revision else ""
    raise UserError(
        f"model.source {model.source!r:.80} is not on this machine. Fix: fetch it (ldmprobe "
        f"fetch, or hf download {model.source}{revision}), or set model.source to its folder"
    )


def has_weights(folder: Path) -> bool:
    """Return whether a model folder has safetensors files for both the denoiser and the VAE."""
    parts = (detect_architecture(folder).denoiser, "vae")
    return all(any((folder / part).glob("*.safetensors")) for part in parts)


def _local_folder(model: Model) -> Path | None:
    """Return the folder that ``model.source`` names; None if it is a Hugging Face id.

    Raises:
        UserError: ``model.source`` is neither a model folder nor a hub id, or ``model.revision`` is
            given for a folder, or the folder holds a pipe or a device.
    """
    is_embedded = model.source == EMBEDDED
    folder = MODEL_FOLDER if is_embedded else user_path(model.source)
    if is_embedded or (folder / "model_index.json").is_file():
        if model.revision is not None:
            raise UserError(
                f"model.revision: {model.source} is a folder, and only hub ids have revisions "
                f"({model.revision!r:.60}). Fix: leave model.revision out"
            )
        require_readable_files(folder, "model.source")
        return folder
    if folder.exists() or not is_hub_id(model.source):
        if folder.is_dir():
            problem = "the folder holds no diffusers model (model_index.json is missing)"
        else:
            problem = "this is a file" if folder.exists() else "there is no such folder"
        raise UserError(
            f"model.source {model.source!r:.80}: {problem}. Fix: give 'tabletop', a folder written "
            "by save_pretrained, or a hub id"
        )
    return None


def fingerprint(folder: Path) -> str:
    """Compute a hash over the names and contents of the config and weight files of a pipeline.

    The files are ``model_index.json`` and those in the folders of the components that it names.
    Others, such as a model card, figures or labelers' weights, do not change the model itself.

    Returns:
        16 hexadecimal digits.
    """
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    components = [folder / name for name in index if (folder / name).is_dir()]
    files = [path for component in components for path in component.rglob("*")]
    digest = hashlib.sha256()
    for path in sorted([folder / "model_index.json", *files]):
        if path.suffix in {".json", ".safetensors", ".txt", ".model"} and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
