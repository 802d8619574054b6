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
"""Prefix of the names of the decoder's modules; a denoiser's have none."""


def capturable_modules(denoiser: nn.Module, vae: nn.Module) -> dict[str, nn.Module]:
    """Every module that can be captured, by name, in the networks' own order.

    Lists of modules are left out: nothing ever calls them.
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
    """Names that any of a study's ``capture.layers`` stands for, in the networks' own order.

    Args:
        names: of every module.
        layers: globs, or names of presets.

    Raises:
        UserError: one of them stands for nothing; close names are listed.
    """
    presets = {**architecture.presets, "vae": (VAE + "decoder.mid_block.attentions.0",)}
    chosen = set()
    for layer in layers:
        globs = presets.get(layer, (layer,))
        found = {name for name in names if any(_matches(name, glob) for glob in globs)}
        if not found:
            if layer in PRESETS and layer not in presets:
                remedy = f"; this model has {', '.join(presets)}"
            else:
                near = difflib.get_close_matches(layer.replace("*", ""), names, n=3, cutoff=0.3)
                remedy = f"; close names are {', '.join(near)}" if near else ""
            raise UserError(f"capture.layers {layer!r} matches no module of the denoiser{remedy}")
        chosen |= found
    return [name for name in names if name in chosen]


def _matches(name: str, glob: str) -> bool:
    """The decoder's modules are meant only by globs that name it."""
    return fnmatchcase(name, glob) and (glob.startswith(VAE) or not name.startswith(VAE))


def image_output_index(architecture: Architecture, module: nn.Module) -> int:
    """Which item of a module's output is the image's: joint blocks return the text first."""
    return int(type(module).__name__ in architecture.joint_block_classes)


def layer_shapes(
    architecture: Architecture, denoiser: nn.Module, vae: Any, layers: list[str]
) -> dict[str, LayerShape]:
    """Shapes of layers by a dry run on the meta device: no weights, no memory, no arithmetic.

    Args:
        denoiser, vae: on the meta device.

    Returns:
        the layers in the order in which they are called.

    Raises:
        UserError: a layer is not called, or gives neither tokens nor a map.
    """
    outputs: dict[str, Any] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output)

    modules = capturable_modules(denoiser, vae)
    hooks = [modules[name].register_forward_hook(note(name)) for name in layers]
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
    in_turn = sorted(layers, key=[*outputs, *layers].index)  # as they are called
    return {
        name: _shape_of(name, outputs, grid, image_output_index(architecture, modules[name]))
        for name in in_turn
    }


def _shape_of(name: str, outputs: dict[str, Any], grid: Grid, item: int) -> LayerShape:
    if name not in outputs:
        raise UserError(
            f"capture.layers: {name} is never called by the denoiser: choose a narrower glob"
        )
    try:
        return LayerShape(*to_grid(outputs[name], grid, item).shape[1:])
    except ValueError as error:
        raise UserError(
            f"capture.layers: {name} cannot be probed, {error}: choose a narrower glob"
        ) from error
