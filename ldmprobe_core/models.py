"""A diffusers pipeline from the embedded model, a folder, or a hub id; safetensors only."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    LMSDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.study import Model, Study
from ldmprobe_core.tabletop import MODEL_FOLDER

SCHEDULERS = {"ddim": DDIMScheduler, "lms": LMSDiscreteScheduler}


def model_folder(model: Model) -> Path:
    """The folder a model's files lie in; a hub id is fetched into the hub's own cache.

    Raises:
        UserError: there is no such folder, or the hub cannot give it.
    """
    if model.source == "tabletop":
        return MODEL_FOLDER
    folder = Path(model.source)
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model.source):
        raise UserError(
            f"model.source {model.source!r}: no diffusers model there (model_index.json is "
            "missing); give 'tabletop', a folder written by save_pretrained, or a hub id"
        )
    try:
        return Path(
            DiffusionPipeline.download(model.source, revision=model.revision, use_safetensors=True)
        )
    except Exception as error:  # whatever the hub's client raises, offline or refused
        raise UserError(
            f"model.source {model.source!r}: cannot be fetched from the hub "
            f"({type(error).__name__}); fetch it where there is a network, then give its folder"
        ) from error


def fingerprint(folder: Path) -> str:
    """16 hex digits over every config and weight file of a model folder, names included."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".safetensors", ".txt"}:
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


def load_pipeline(study: Study, device: torch.device) -> StableDiffusionPipeline:
    """The study's pipeline in float32, in eval mode, with the study's scheduler.

    Raises:
        UserError: the folder holds no pipeline that can be probed.
    """
    folder = model_folder(study.model)
    logging.disable_progress_bar()  # the stage shows its own
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
            local_files_only=True,
        )
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.source {study.model.source!r} does not load: {reason}") from error
    pipeline.scheduler = new_scheduler(folder, study)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval().requires_grad_(False)
    return pipeline.to(device)


def new_scheduler(folder: Path, study: Study) -> Any:
    """The study's scheduler, on the noise schedule that the model was trained with."""
    kind = SCHEDULERS[study.sampling.scheduler]
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return kind.from_config(config)


def timesteps(folder: Path, study: Study) -> list[float]:
    """The scheduler's own numbers of all steps, in sampling order."""
    scheduler = new_scheduler(folder, study)
    scheduler.set_timesteps(study.sampling.steps)
    return [float(t) for t in scheduler.timesteps]


def skeleton(folder: Path) -> UNet2DConditionModel:
    """The denoiser without weights or memory: names of modules, and shapes by a dry run."""
    config = json.loads((folder / "unet" / "config.json").read_text())
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config).eval()


def image_size(folder: Path) -> int:
    """Height and width in pixels of the model's pictures."""
    unet = json.loads((folder / "unet" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)


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
