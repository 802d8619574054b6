"""Activations of named modules, by plain forward hooks; the conditional half only.

What a call left goes to the host while the device computes on: a `Leaving` begins the copy, and
its `arrive` ends it, which whoever keeps the values may call in a thread of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.families import PRESETS, Family, Grid, to_grid

Taken = dict[str, tuple[np.ndarray, np.ndarray]]
"""By layer: float16 (sample, y, x, channel), and int32 counts (sample,) of what is not finite."""

VAE = "vae."
"""Prefix of the names of the decoder's modules; a denoiser's have none."""


class LayerShape(NamedTuple):
    """Size of one layer's activations: tokens down and across, and channels."""

    y: int
    x: int
    channels: int


def modules_of(denoiser: nn.Module, vae: nn.Module) -> dict[str, nn.Module]:
    """Every module that can be captured, by name, in the networks' own order.

    Lists of modules are left out: nothing ever calls them.
    """
    named = dict(denoiser.named_modules())
    named |= {
        VAE + name: module for name, module in vae.named_modules() if name.startswith("decoder")
    }
    containers = (nn.ModuleList, nn.ModuleDict)
    return {name: m for name, m in named.items() if name and not isinstance(m, containers)}


def match_layers(family: Family, names: list[str], layers: tuple[str, ...]) -> list[str]:
    """Names that any of a study's ``capture.layers`` stands for, in the networks' own order.

    Args:
        names: of every module.
        layers: globs, or names of presets.

    Raises:
        UserError: one of them stands for nothing; close names are listed.
    """
    presets = {**family.presets, "vae": (VAE + "decoder.mid_block.attentions.0",)}
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


class Leaving:
    """Values on their way from the device to the host.

    Args:
        values: layer name to float16 (sample, y, x, channel) on the device.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        counted = {name: (half, _nonfinite(half)) for name, half in values.items()}
        self._event: torch.cuda.Event | None = None
        device = next((half.device for half in values.values()), torch.device("cpu"))
        if device.type == "cuda":
            side = _side_stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                counted = {
                    name: (_to_pinned(half, side), _to_pinned(bad, side))
                    for name, (half, bad) in counted.items()
                }
            self._event = side.record_event()
        self._values = counted

    @property
    def nbytes(self) -> int:
        """Of the values."""
        return sum(half.nbytes for half, _ in self._values.values())

    def arrive(self) -> Taken:
        """Wait until they are there."""
        if self._event is not None:
            self._event.synchronize()
        return {
            name: (half.cpu().numpy(), bad.cpu().numpy())
            for name, (half, bad) in self._values.items()
        }


@lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that a device's copies go by, beside the one that it computes on."""
    return torch.cuda.Stream(device)


def _to_pinned(values: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """A copy in page-locked memory, begun on a stream; torch lends such memory out again."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    values.record_stream(stream)  # its memory is not given away before the copy is done
    return host


def _nonfinite(half: Tensor) -> Tensor:
    """Counts (sample,) int32 of values that are not finite: from the model, or from its cast, since
    float16 ends at 65,504."""
    bits = half.view(torch.int16) & 0x7FFF  # integers, in whose order nothing finite is above
    if half.device.type == "cpu" and (not bits.numel() or bits.max() < _INFINITE):
        return torch.zeros(len(half), dtype=torch.int32)  # a third of the time; a GPU would wait
    return (bits >= _INFINITE).flatten(1).sum(1, dtype=torch.int32)


_INFINITE = 0x7C00  # float16's bits of infinity; NaNs are above


class Capture:
    """Hooks on modules, as a context manager; `take` after each call of their network.

    Args:
        modules: layer name to module.
        family: knows which modules return text beside the image.
        halves: how many copies of the batch one call holds: 2 under guidance (unconditional,
            then conditional), else 1.  It is declared, never inferred from shapes.
        network: whose calls are watched; its text input tells how many tokens are text.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        family: Family,
        halves: int = 1,
        network: nn.Module | None = None,
    ) -> None:
        self.modules, self.family, self.halves, self.network = modules, family, halves, network
        self._grid = family.grid
        self._seen: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Capture:
        if self.network is not None and self.family.joint:
            hook = self.network.register_forward_pre_hook(self._count_text, with_kwargs=True)
            self._hooks.append(hook)
        for name, module in self.modules.items():
            self._hooks.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _count_text(self, _network: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        text = kwargs["encoder_hidden_states"]
        self._grid = replace(self._grid, text=text.shape[1])

    def _hook(self, name: str) -> Callable[..., None]:
        item = image_item(self.family, self.modules[name])

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            grid = to_grid(output, self._grid, item)
            n = len(grid) // self.halves
            self._seen[name] = grid[-n:].detach()

        return keep

    def forget(self) -> None:
        """Drop what a call left, such as guidance's unconditional one."""
        self._seen = {}

    def take(self, samples: int) -> dict[str, Tensor]:
        """What the last call left, by layer: float16 (sample, y, x, channel) on the device.

        Raises:
            RuntimeError: a hook did not fire, or saw another batch than ``samples``.
        """
        silent = [name for name in self.modules if name not in self._seen]
        if silent:
            raise RuntimeError(
                f"no activations came from {', '.join(silent)}: the module was not called "
                "(a compiled model bypasses hooks)"
            )
        taken = {}
        for name in self.modules:
            values = self._seen[name]
            if len(values) != samples:
                raise RuntimeError(
                    f"{name} saw a batch of {len(values) * self.halves}, not {samples} x "
                    f"{self.halves}: the pipeline's guidance is not what was declared"
                )
            taken[name] = values.to(torch.float16, copy=True)  # not a view of both halves
        self._seen = {}
        return taken


def image_item(family: Family, module: nn.Module) -> int:
    """Which item of a module's output is the image's: joint blocks return the text first."""
    return int(type(module).__name__ in family.joint)


def layer_shapes(
    family: Family, denoiser: nn.Module, vae: Any, layers: list[str]
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

    modules = modules_of(denoiser, vae)
    hooks = [modules[name].register_forward_hook(note(name)) for name in layers]
    with torch.device("meta"), torch.no_grad():
        call = family.dry_call()
        denoiser(**call)
        if any(name.startswith(VAE) for name in layers):
            vae.decode(torch.empty(1, family.vae["latent_channels"], *family.latent))
    for hook in hooks:
        hook.remove()
    text = call["encoder_hidden_states"].shape[1] if family.joint else 0
    grid = replace(family.grid, text=text)
    in_turn = sorted(layers, key=[*outputs, *layers].index)  # as they are called
    return {
        name: _shape_of(name, outputs, grid, image_item(family, modules[name])) for name in in_turn
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
