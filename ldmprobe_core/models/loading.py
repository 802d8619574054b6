"""Loading of a diffusers pipeline from a folder or the hub's cache; safetensors only."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.schedulers import new_scheduler
from ldmprobe_core.models.weights import model_folder
from ldmprobe_core.study.schema import Study


def load_pipeline(study: Study, device: torch.device) -> Any:
    """Load the study's pipeline, in eval mode, with the study's scheduler.

    Raises:
        UserError: the folder holds no pipeline that can be probed, or its weights do not load.
    """
    model = study.model
    folder = model_folder(model)
    architecture = detect_architecture(folder)
    logging.disable_progress_bar()  # each stage has a bar of its own
    # Results are those of the study's dtype on every card: no hidden TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        pipeline: Any = architecture.load_pipeline(
            folder,
            # In float16 some VAEs overflow, and decoding is a small part of the time.
            dtype={"vae": torch.float32, "default": getattr(torch, model.dtype)},
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, TypeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.source {model.source!r} does not load: {reason}") from error
    pipeline.scheduler = new_scheduler(study.sampling.scheduler, architecture.scheduler)
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


def meta_modules(architecture: Architecture) -> tuple[nn.Module, nn.Module]:
    """Build the denoiser and the VAE on the meta device, without weights or memory.

    They give the names of modules and, by a dry run, the shapes of layers.

    Raises:
        UserError: the configs describe no network that diffusers can build.
    """
    try:
        with torch.device("meta"):
            denoiser = architecture.network.from_config(architecture.config).eval()
            return denoiser, AutoencoderKL.from_config(architecture.vae).eval()
    except (TypeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model: {architecture.source} has an unusable config: {reason}") from error


def timesteps(architecture: Architecture, study: Study) -> list[float]:
    """Timesteps of all steps, in sampling order."""
    scheduler = new_scheduler(study.sampling.scheduler, architecture.scheduler)
    architecture.set_steps(scheduler, study.sampling.steps)
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
