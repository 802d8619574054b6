"""Loading of a diffusers pipeline from a local folder or the Hugging Face cache."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from safetensors import SafetensorError
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import Architecture, default_config
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.devices import check_device
from ldmprobe_core.models.files.checkpoint import require_weights
from ldmprobe_core.models.files.components import absent_components
from ldmprobe_core.models.files.model_folder import model_folder
from ldmprobe_core.models.timesteps import scheduler_of
from ldmprobe_core.study.schema import Study


def load_pipeline(study: Study, device: torch.device) -> Any:
    """Load the diffusers pipeline of a study's model, in eval mode and with the study's scheduler.

    Weights are read from safetensors files on this machine only; nothing is downloaded.

    Args:
        study: study whose ``model`` and ``sampling.scheduler`` settings are used.
        device: device that the pipeline is moved to.

    Returns:
        the pipeline, with a float32 VAE and the other networks in ``model.dtype``.

    Raises:
        UserError: the model is not on this machine, its architecture is not supported, its weights
            do not load, or the device does not suit the study.
    """
    model = study.model
    folder = model_folder(model)
    architecture = detect_architecture(folder)
    # Turn off diffusers' progress bar, which would overwrite the bars of the command line.
    logging.disable_progress_bar()
    try:
        pipeline: Any = architecture.load_pipeline(
            folder,
            # The VAE is always in float32.  Some VAEs overflow in float16, and decoding is only a
            # small part of the computing time.
            dtype={"vae": torch.float32, "default": getattr(torch, model.dtype)},
            use_safetensors=True,
            local_files_only=True,
            **absent_components(folder, architecture),
        )
    except (OSError, ValueError, TypeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.source: {model.source!r} does not load ({reason}). Fix: fetch the model again"
        ) from error
    return prepare_pipeline(pipeline, architecture, study, device)


def prepare_pipeline(
    pipeline: Any, architecture: Architecture, study: Study, device: torch.device
) -> Any:
    """Give a loaded pipeline the study's scheduler, put it into eval mode, and move it to a device.

    Raises:
        UserError: the scheduler or the device does not suit the study.
    """
    model = study.model
    pipeline.scheduler = scheduler_of(architecture, study.sampling.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    if model.attention_slicing:
        pipeline.enable_attention_slicing()
    if not model.cpu_offload:
        return pipeline.to(device)
    check_device(study)
    pipeline.enable_model_cpu_offload(device=device)
    return pipeline


def meta_modules(architecture: Architecture) -> tuple[nn.Module, nn.Module]:
    """Build a model's denoiser and VAE on the meta device, where tensors have shapes but no data.

    These networks give the names of modules and the shapes of their outputs without weights.

    Raises:
        UserError: diffusers cannot build a network from the model's configs.
    """
    try:
        with torch.device("meta"):
            denoiser = architecture.network.from_config(architecture.config).eval()
            known = default_config(architecture.vae_network)
            config = {key: value for key, value in architecture.vae.items() if key in known}
            return denoiser, architecture.vae_network.from_config(config).eval()
    # Wrong values in a config raise exceptions of many types, so all are caught.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model: {architecture.source} has an unusable config ({type(error).__name__}: "
            f"{reason:.120}). Fix: fetch the model again"
        ) from error


def permute_weights(module: nn.Module, seed: int = 100) -> None:
    """Randomly permute the entries of every parameter tensor of a network, in place.

    Each tensor keeps its values, but their learned order is lost.  Probes on such a network are a
    control (Chen, Viégas & Wattenberg 2023, section 4).

    Args:
        module: network whose parameters are permuted.
        seed: seed of the permutation; the paper's code uses 100.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def draw_weights(network: Any, seed: int = 100) -> None:
    """Replace all weights of a network by a new random initialisation, in place.

    Args:
        network: network of diffusers, which its class builds again from its config.
        seed: seed of the draw, which leaves PyTorch's generator as it is.

    Raises:
        UserError: the network has other weights than its class.
    """
    with torch.random.fork_rng(devices=[]):
        # Seed only the CPU generator; `torch.manual_seed` would also seed the GPU generators.
        torch.random.default_generator.manual_seed(seed)
        drawn = type(network).from_config(network.config)
    _require_same_names(drawn, network)
    network.load_state_dict(drawn.state_dict())


def check_drawable(network: Any) -> None:
    """Check that `draw_weights` can replace all weights of a network; no weights are changed.

    Args:
        network: network of diffusers.

    Raises:
        UserError: the network has other weights than its class, such as those of an adapter.
    """
    with torch.device("meta"):
        _require_same_names(type(network).from_config(network.config), network)


def _require_same_names(drawn: nn.Module, network: nn.Module) -> None:
    if drawn.state_dict().keys() != network.state_dict().keys():
        raise UserError(
            f"controls.random_weights: the {type(network).__name__} has adapters or fused "
            "projections, so its config does not describe all of its weights (true). Fix: set "
            "controls.permuted_weights instead"
        )


def untrained_copy(network: nn.Module, random: bool) -> nn.Module:
    """Copy a network, with random initial weights or with its own weights permuted."""
    copied = copy.deepcopy(network)
    (draw_weights if random else permute_weights)(copied)
    return copied


def check_weights(folder: Path) -> None:
    """Check that a model folder has every weight tensor of its networks, without loading them.

    Raises:
        UserError: the folder of a tokenizer, a file, a shard or a tensor is missing, a file is
            incomplete, or a tensor has another shape than its network needs.
    """
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    for name, entry in index.items():
        network = None
        is_tokenizer = name.startswith("tokenizer") and isinstance(entry, list) and entry[-1]
        if is_tokenizer and not (folder / name).is_dir():
            raise UserError(f"model: {folder / name} is missing. Fix: fetch it")
        if isinstance(entry, list) and len(entry) == 2 and name not in _NOT_LOADED:
            network = meta_network(folder / name, *entry)
        if network is not None:
            require_weights(folder / name, network)
            _require_not_quantized(folder / name)


def _require_not_quantized(folder: Path) -> None:
    """Check that a component's config has no ``quantization_config``."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if config.get("quantization_config") is not None:
        raise UserError(
            f"model: {folder / 'config.json'} has a quantization_config, but quantized models "
            "cannot be probed. Fix: use the model before its quantization"
        )


_NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
"""Pipeline components that studies do not use, so that their weights may be missing."""


def meta_network(folder: Path, library: str | None, name: str | None) -> nn.Module | None:
    """Build the network of a pipeline component on the meta device, without its weights.

    Args:
        folder: folder of the component, with its config.
        library: library of the component's class, such as ``diffusers``.
        name: name of the class.

    Returns:
        the network; None if the component is not a network, such as a tokenizer.

    Raises:
        UserError: the library cannot build the network from its config.
    """
    if library not in ("diffusers", "transformers"):
        return None
    kind = getattr(importlib.import_module(library), str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        return None
    network: Any = kind
    try:
        with torch.device("meta"):
            if library == "diffusers":
                return network.from_config(network.load_config(folder))
            return network(network.config_class.from_pretrained(folder, local_files_only=True))
    # Wrong values in a config raise exceptions of many types, so all are caught.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model: {folder} has an unusable config ({reason:.120}). Fix: fetch the model again"
        ) from error
