"""Selection of the layers that a study captures, and the shapes of their activations."""

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
from ldmprobe_core.models.capture_points.attention import attention_points
from ldmprobe_core.models.capture_points.channels import CapturePoint
from ldmprobe_core.models.token_grid import Grid, to_grid
from ldmprobe_core.study.layers import POINT, VAE, LayerShape


def named_points(network: nn.Module) -> dict[str, nn.Module | CapturePoint]:
    """Return all modules of a network, and capture points inside attention layers, by name.

    Returns:
        name to module or capture point, in the order in which the network defines the modules;
        points have names such as ``mid_block.attentions.0.transformer_blocks.0.attn1@query``.
    """
    named: dict[str, nn.Module | CapturePoint] = {}
    for name, module in network.named_modules():
        named[name] = module
        points = attention_points(module)
        named |= {f"{name}{POINT}{suffix}": point for suffix, point in points.items()}
    return named


def capturable_modules(denoiser: nn.Module, vae: nn.Module) -> dict[str, nn.Module | CapturePoint]:
    """List the modules and capture points of denoiser and VAE decoder that can be captured.

    `ModuleList` and `ModuleDict` containers are left out, since hooks on them are never called.

    Returns:
        layer name to module or capture point, in the order in which the networks define them; names
        in the decoder start with ``vae.decoder``.
    """
    named = named_points(denoiser)
    named |= {VAE + n: point for n, point in named_points(vae).items() if n.startswith("decoder")}
    containers = (nn.ModuleList, nn.ModuleDict)
    return {name: m for name, m in named.items() if name and not isinstance(m, containers)}


def match_layers(
    architecture: Architecture, names: list[str], layers: tuple[str, ...]
) -> list[str]:
    """Select the layers that match a study's setting ``capture.layers``.

    Args:
        architecture: architecture of the model, which defines the presets.
        names: names of all modules and points that can be captured.
        layers: globs over module names, such as ``*.attn1``, or preset names, such as ``resnets``.
            Followed by ``@`` and a point or a glob over points, such as ``*.attn1@head*``, they
            select points inside the matching layers; otherwise they select no points.

    Returns:
        the matching names, in the order of ``names``.

    Raises:
        UserError: a glob or preset matches no module; the message lists similar names.
    """
    presets = dict(architecture.presets)
    if architecture.probes_vae:
        presets["vae"] = (VAE + "decoder.mid_block.attentions.0",)
    else:
        names = [name for name in names if not name.startswith(VAE)]
    chosen = set()
    for layer in layers:
        base, at, point = layer.partition(POINT)
        globs = [glob + at + point for glob in presets.get(base, (base,))]
        matching = {name for name in names if any(_matches(name, glob) for glob in globs)}
        if not matching:
            if base in PRESETS and base not in presets:
                remedy = f"a preset of this model ({', '.join(presets)})"
            elif at:
                remedy = (
                    "@query or @head<number> of an attention layer, or, unless its keys and values "
                    "are those of text tokens, @key or @value; @words of a cross-attention layer, "
                    "or @tokens of a self-attention layer without normalised queries and keys"
                )
            else:
                close = difflib.get_close_matches(layer.replace("*", ""), names, n=3, cutoff=0.3)
                remedy = f"a name such as {', '.join(close or names[:3])}"
            raise UserError(
                f"capture.layers: {layer!r:.80} matches no module of the denoiser. Fix: use "
                f"{remedy}"
            )
        chosen |= matching
    return [name for name in names if name in chosen]


def _matches(name: str, glob: str) -> bool:
    """Return whether a glob matches a layer.

    Only globs that start with ``vae.`` match the VAE, and only those with ``@`` match points.
    """
    in_scope = glob.startswith(VAE) or not name.startswith(VAE)
    return fnmatchcase(name, glob) and in_scope and (POINT in glob) == (POINT in name)


def image_output_index(architecture: Architecture, module: nn.Module | CapturePoint) -> int:
    """Return the index of the image tokens in a module's output, if the output is a tuple.

    Joint blocks return (text, image), so the index is 1 for them and 0 for other modules.
    """
    return int(type(module).__name__ in architecture.joint_block_classes)


def layer_shapes(
    architecture: Architecture,
    denoiser: nn.Module,
    vae: Any,
    layers: list[str],
    text_tokens: int | None = None,
) -> dict[str, LayerShape]:
    """Compute the output shapes of layers from one call of the networks on the meta device.

    Tensors on the meta device have shapes but no data, so the call needs no weights.

    Args:
        architecture: architecture of the model, which gives the inputs of the call.
        denoiser, vae: networks on the meta device.
        layers: names of the layers.
        text_tokens: number of text tokens that the pipeline passes, which are the channels of
            attention maps; None if there are no attention maps among the layers.

    Returns:
        layer name to height, width and channels, in the order in which the layers are called.

    Raises:
        UserError: the denoiser does not accept the inputs that its pipeline passes, a layer is not
            called, or the output of a layer is neither image tokens nor a feature map.
    """
    outputs: dict[str, Any] = {}

    def recorder(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output)

    modules = capturable_modules(denoiser, vae)
    hooks = [modules[name].register_forward_hook(recorder(name)) for name in layers]
    with torch.device("meta"), torch.no_grad():
        try:
            call = architecture.dummy_inputs()
            if text_tokens is not None:
                width = call["encoder_hidden_states"].shape[-1]
                call["encoder_hidden_states"] = torch.empty(1, text_tokens, width)
            denoiser(**call)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise dry_run_problem(architecture, error) from error
        if any(name.startswith(VAE) for name in layers):
            vae.decode(torch.empty(1, architecture.vae["latent_channels"], *architecture.latent))
    for hook in hooks:
        hook.remove()
    text = call["encoder_hidden_states"].shape[1] if architecture.joint_block_classes else 0
    grid = replace(architecture.grid, text=text)
    # The hooks filled `outputs` in the order of the calls.  Layers that were not called are sorted
    # last, and `_shape_of` refuses them.
    called = sorted(layers, key=[*outputs, *layers].index)
    return {
        name: _shape_of(name, outputs, grid, image_output_index(architecture, modules[name]))
        for name in called
    }


def text_channels(architecture: Architecture) -> int:
    """Number of channels of the prompt embeddings that the denoiser reads; 0 if it reads none."""
    with torch.device("meta"):
        text = architecture.dummy_inputs().get("encoder_hidden_states")
    return 0 if text is None else int(text.shape[-1])


def _shape_of(name: str, outputs: dict[str, Any], grid: Grid, item: int) -> LayerShape:
    """Return the shape of one layer's output; raise `UserError` if it cannot be probed."""
    if name not in outputs:
        raise UserError(
            f"capture.layers: {name} is never called by the denoiser. Fix: use a glob that does "
            "not match this layer"
        )
    try:
        return LayerShape(*to_grid(outputs[name], grid, item).shape[1:])
    except ValueError as error:
        raise UserError(
            f"capture.layers: {name} cannot be probed ({error}). Fix: use a glob that does not "
            "match this layer"
        ) from error
