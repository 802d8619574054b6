"""Layers by name: which modules can be captured, globs over them, and their shapes."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import PRESETS, Architecture
from ldmprobe_core.models.architectures.settings import dry_run_problem
from ldmprobe_core.models.token_grid import Grid, to_grid
from ldmprobe_core.study.layers import LayerShape

VAE = "vae."
"""Prefix of the names of the decoder's modules; names of the denoiser's have none."""


def capturable_modules(denoiser: nn.Module, vae: nn.Module) -> dict[str, nn.Module]:
    """Every module that can be captured, by name, in the networks' own order.

    Containers of modules are left out, since they are never called.
    """
    named = dict(denoiser.named_modules())
    named |= {
        VAE + name: module for name, module in vae.named_modules() if name.startswith("decoder")
    }
    containers = (nn.ModuleList, nn.ModuleDict)
    return {name: m for name, m in named.items() if name and not isinstance(m, containers)}


def match_layers(
    architecture: Architecture, names: list[str], layers: tuple[str, ...]
) -> list[str]:
    """Select the names that a study's ``capture.layers`` match, in the networks' own order.

    Args:
        names: name of every module.
        layers: globs, or names of presets.

    Raises:
        UserError: a glob or preset matches no module; close names are listed.
    """
    presets = {**architecture.presets, "vae": (VAE + "decoder.mid_block.attentions.0",)}
    chosen = set()
    for layer in layers:
        globs = presets.get(layer, (layer,))
        matching = {name for name in names if any(_matches(name, glob) for glob in globs)}
        if not matching:
            if layer in PRESETS and layer not in presets:
                remedy = f"; this model has {', '.join(presets)}"
            else:
                close = difflib.get_close_matches(layer.replace("*", ""), names, n=3, cutoff=0.3)
                remedy = f"; close names are {', '.join(close)}" if close else ""
            raise UserError(f"capture.layers {layer!r} matches no module of the denoiser{remedy}")
        chosen |= matching
    return [name for name in names if name in chosen]


def _matches(name: str, glob: str) -> bool:
    """Whether a glob matches a name; only globs with the prefix match the decoder's modules."""
    return fnmatchcase(name, glob) and (glob.startswith(VAE) or not name.startswith(VAE))


def image_output_index(architecture: Architecture, module: nn.Module) -> int:
    """Index of the image in a module's output: 1 for joint blocks, which return the text first."""
    return int(type(module).__name__ in architecture.joint_block_classes)


def layer_shapes(
    architecture: Architecture, denoiser: nn.Module, vae: Any, layers: list[str]
) -> dict[str, LayerShape]:
    """Shapes of layers by a dry run on the meta device, without weights, memory or arithmetic.

    Args:
        denoiser, vae: on the meta device.

    Returns:
        the layers in the order in which they are called.

    Raises:
        UserError: the denoiser cannot be called as its pipeline calls it, or a layer is not called
            or gives neither tokens nor a map.
    """
    outputs: dict[str, Any] = {}

    def recorder(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output)

    modules = capturable_modules(denoiser, vae)
    hooks = [modules[name].register_forward_hook(recorder(name)) for name in layers]
    with torch.device("meta"), torch.no_grad():
        try:
            call = architecture.dummy_inputs()
            denoiser(**call)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise dry_run_problem(architecture, error) from error
        if any(name.startswith(VAE) for name in layers):
            vae.decode(torch.empty(1, architecture.vae["latent_channels"], *architecture.latent))
    for hook in hooks:
        hook.remove()
    text = call["encoder_hidden_states"].shape[1] if architecture.joint_block_classes else 0
    grid = replace(architecture.grid, text=text)
    called = sorted(layers, key=[*outputs, *layers].index)  # in the order of the calls
    return {
        name: _shape_of(name, outputs, grid, image_output_index(architecture, modules[name]))
        for name in called
    }


def _shape_of(name: str, outputs: dict[str, Any], grid: Grid, item: int) -> LayerShape:
    if name not in outputs:
        raise UserError(
            f"capture.layers: {name} is never called by the denoiser. Fix: choose a narrower glob"
        )
    try:
        return LayerShape(*to_grid(outputs[name], grid, item).shape[1:])
    except ValueError as error:
        raise UserError(
            f"capture.layers: {name} cannot be probed, {error}. Fix: choose a narrower glob"
        ) from error
