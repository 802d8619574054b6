"""A diffusers pipeline from the embedded model, a folder, or a hub id; safetensors only."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, NoReturn

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging
from huggingface_hub import snapshot_download
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.families import Family, family_of
from ldmprobe_core.schedulers import new_scheduler
from ldmprobe_core.study import Model, Study
from ldmprobe_core.tabletop import MODEL_FOLDER

_KNOWN = {"CompVis/stable-diffusion-v1-4": "stable-diffusion-v1-4"}
"""Hub ids whose configs ship with us, so that a study of them is sized without a network."""


def config_folder(model: Model) -> Path:
    """The folder of a model's JSON configs; its weights may be elsewhere, or not here at all.

    Raises:
        UserError: there is no such model on this machine.
    """
    folder = _local_folder(model) or _cached(model)
    if folder is None and model.source in _KNOWN:
        folder = Path(__file__).parent / "configs" / _KNOWN[model.source]
    return folder or _not_here(model)


def model_folder(model: Model) -> Path:
    """The folder a model's files lie in: given, or of the hub's own cache; nothing is fetched.

    Raises:
        UserError: there is no such folder.
    """
    return _local_folder(model) or _cached(model) or _not_here(model)


def _not_here(model: Model) -> NoReturn:
    revision = f" --revision {model.revision}" if model.revision else ""
    raise UserError(
        f"model.source {model.source!r} is not on this machine: fetch it with hf download "
        f"{model.source}{revision}, or give its folder"
    )


def has_weights(folder: Path) -> bool:
    """A model folder holds the weights of its denoiser and its VAE, as safetensors."""
    parts = (family_of(folder).denoiser, "vae")
    return all(any((folder / part).glob("*.safetensors")) for part in parts)


def _local_folder(model: Model) -> Path | None:
    """The model's folder; None for a hub id."""
    if model.source == "tabletop":
        return MODEL_FOLDER
    folder = Path(model.source).expanduser()
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model.source):
        raise UserError(
            f"model.source {model.source!r}: no diffusers model there (model_index.json is "
            "missing); give 'tabletop', a folder written by save_pretrained, or a hub id"
        )
    return None


def _cached(model: Model) -> Path | None:
    """A hub id's files as far as they were fetched before."""
    try:
        return Path(snapshot_download(model.source, revision=model.revision, local_files_only=True))
    except Exception:  # the hub's client has many ways to say that it is not there
        return None


def fingerprint(folder: Path) -> str:
    """16 hex digits over every config and weight file of a model folder, names included."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".safetensors", ".txt", ".model"}:
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def pick_device(name: str) -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: the device asked for is not on this machine.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present[name]:
        raise UserError(f"execution.device is {name!r}, which this machine does not have: use auto")
    return torch.device(name)


def load_pipeline(study: Study, device: torch.device) -> Any:
    """The study's pipeline, in eval mode, with the study's scheduler.

    Raises:
        UserError: the folder holds no pipeline that can be probed.
    """
    model = study.model
    folder = model_folder(model)
    family = family_of(folder)
    logging.disable_progress_bar()  # the stage shows its own
    # Results are those of the study's dtype on every card: no hidden TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    unwanted = {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipeline: Any = family.pipeline.from_pretrained(
            folder,
            # In float16 some VAEs overflow, and decoding is a small part of the time.
            dtype={"vae": torch.float32, "default": getattr(torch, model.dtype)},
            use_safetensors=True,
            local_files_only=True,
            **(unwanted if type(family) is Family else {}),
        )
    except (OSError, ValueError, TypeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.source {model.source!r} does not load: {reason}") from error
    pipeline.scheduler = new_scheduler(study.sampling.scheduler, family.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    if model.attention_slicing:
        pipeline.enable_attention_slicing()
    if not model.cpu_offload:
        return pipeline.to(device)
    if device.type == "cpu":
        raise UserError("model.cpu_offload is on, and the device is the CPU already: turn it off")
    pipeline.enable_model_cpu_offload(device=device)
    return pipeline


def skeletons(family: Family) -> tuple[nn.Module, nn.Module]:
    """Denoiser and VAE without weights or memory: names of modules, and shapes by a dry run.

    Raises:
        UserError: the configs describe no network that diffusers can build.
    """
    try:
        with torch.device("meta"):
            denoiser = family.network.from_config(family.config).eval()
            return denoiser, AutoencoderKL.from_config(family.vae).eval()
    except (TypeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model: {family.folder} has an unusable config: {reason}") from error


def timesteps(family: Family, study: Study) -> list[float]:
    """The scheduler's own numbers of all steps, in sampling order."""
    scheduler = new_scheduler(study.sampling.scheduler, family.scheduler)
    family.set_steps(scheduler, study.sampling.steps)
    return [float(t) for t in scheduler.timesteps]


def permute_weights(module: nn.Module, seed: int = 100) -> None:
    """Permute the entries of every parameter tensor, in place.

    The paper's control (section 4): each tensor keeps its values and loses what was learned.

    Args:
        seed: of the permutation; the paper's code takes 100.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
