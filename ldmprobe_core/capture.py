"""Activations of named denoiser modules, by plain forward hooks; the conditional half only."""

from __future__ import annotations

import difflib
import math
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ldmprobe_core.errors import UserError


class LayerShape(NamedTuple):
    """Size of one layer's activations: tokens down and across, and channels."""

    y: int
    x: int
    channels: int


def match_layers(denoiser: nn.Module, globs: tuple[str, ...]) -> list[str]:
    """Names of the modules that any glob matches, in the denoiser's own order.

    Raises:
        UserError: a glob matches nothing; close names are listed.
    """
    names = [name for name, _ in denoiser.named_modules() if name]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            near = difflib.get_close_matches(glob.replace("*", ""), names, n=3, cutoff=0.3)
            hint = f"; close names are {', '.join(near)}" if near else ""
            raise UserError(f"capture.layers {glob!r} matches no module of the denoiser{hint}")
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def to_grid(output: Any, latent: tuple[int, int]) -> Tensor:
    """A module's output as (n, y, x, channel).

    Args:
        output: tokens (n, token, channel), row by row, or a feature map (n, channel, y, x); of a
            tuple, its first item.
        latent: height and width of the latents, whose aspect the tokens share.

    Raises:
        ValueError: the output is neither.
    """
    tensor = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(tensor, Tensor) or tensor.ndim not in (3, 4):
        raise ValueError(f"a captured module gave {type(tensor).__name__}, not tokens or a map")
    if tensor.ndim == 4:
        return tensor.permute(0, 2, 3, 1)
    n, tokens, channels = tensor.shape
    height, width = latent
    across = round(math.sqrt(tokens * width / height))
    if across == 0 or tokens % across or tokens // across * width != across * height:
        raise ValueError(f"{tokens} tokens do not tile latents of {height} x {width}")
    return tensor.reshape(n, tokens // across, across, channels)


class Capture:
    """Hooks on ``layers`` of a denoiser, as a context manager; `take` after each denoiser call.

    Args:
        layers: module names.
        halves: how many copies of the batch one call holds: 2 under guidance (unconditional,
            then conditional), else 1.  It is declared, never inferred from shapes.
        latent: height and width of the latents.
    """

    def __init__(
        self, denoiser: nn.Module, layers: list[str], halves: int, latent: tuple[int, int]
    ) -> None:
        self.denoiser, self.layers, self.halves, self.latent = denoiser, layers, halves, latent
        self._seen: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Capture:
        modules = dict(self.denoiser.named_modules())
        for name in self.layers:
            hook = modules[name].register_forward_hook(self._hook(name))
            self._hooks.append(hook)
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            grid = to_grid(output, self.latent)
            n = len(grid) // self.halves
            self._seen[name] = grid[-n:].detach()

        return keep

    def take(self, samples: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What the last call left: per layer float16 (sample, y, x, channel) and non-finite counts.

        The counts (sample,) int32 are of values that are not finite in float16, be it from the
        model or from its cast (float16 ends at 65,504).

        Raises:
            RuntimeError: a hook did not fire, or saw another batch than ``samples``.
        """
        silent = [name for name in self.layers if name not in self._seen]
        if silent:
            raise RuntimeError(
                f"no activations came from {', '.join(silent)}: the module was not called "
                "(a compiled model bypasses hooks)"
            )
        taken = {}
        for name in self.layers:
            grid = self._seen[name]
            if len(grid) != samples:
                raise RuntimeError(
                    f"{name} saw a batch of {len(grid) * self.halves}, not {samples} x "
                    f"{self.halves}: the pipeline's guidance is not what was declared"
                )
            half = grid.to(torch.float16).cpu().numpy()
            bad = (~np.isfinite(half)).reshape(samples, -1).sum(1).astype(np.int32)
            taken[name] = (half, bad)
        self._seen = {}
        return taken


def layer_shapes(
    skeleton: nn.Module, layers: list[str], latent: tuple[int, int], context: int
) -> dict[str, LayerShape]:
    """Shapes of layers by a dry run on the meta device: no weights, no memory, no arithmetic.

    Args:
        skeleton: the denoiser on the meta device.
        latent: height and width of the latents.
        context: text tokens.
    """
    shapes: dict[str, LayerShape] = {}

    def note(name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shapes[name] = LayerShape(*to_grid(output, latent).shape[1:])

        return keep

    modules = dict(skeleton.named_modules())
    hooks = [modules[name].register_forward_hook(note(name)) for name in layers]
    config: Any = skeleton.config
    with torch.device("meta"), torch.no_grad():
        skeleton(
            torch.empty(1, config.in_channels, *latent),
            torch.ones(1),
            torch.empty(1, context, config.cross_attention_dim),
        )
    for hook in hooks:
        hook.remove()
    return shapes
