"""Forward hooks that capture the activations of named modules (conditional half only).

What a call left goes to the host while the device computes on: a `HostTransfer` begins the copy,
and `HostTransfer.result` waits for it, possibly in another thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.models.layers import image_output_index
from ldmprobe_core.models.token_grid import to_grid


class ActivationCapture:
    """Hooks on modules, as a context manager; `pop_activations` after each call of their network.

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
        architecture: Architecture,
        batch_copies: int = 1,
        network: nn.Module | None = None,
    ) -> None:
        self.modules, self.architecture, self.batch_copies, self.network = (
            modules,
            architecture,
            batch_copies,
            network,
        )
        self._grid = architecture.grid
        self._seen: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> ActivationCapture:
        if self.network is not None and self.architecture.joint_block_classes:
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
        item = image_output_index(self.architecture, self.modules[name])

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            grid = to_grid(output, self._grid, item)
            n = len(grid) // self.batch_copies
            self._seen[name] = grid[-n:].detach()

        return keep

    def discard(self) -> None:
        """Discard the outputs of the last call, such as guidance's unconditional one."""
        self._seen = {}

    def pop_activations(self, samples: int) -> dict[str, Tensor]:
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
                    f"{name} saw a batch of {len(values) * self.batch_copies}, not {samples} x "
                    f"{self.batch_copies}: the pipeline's guidance is not what was declared"
                )
            taken[name] = values.to(torch.float16, copy=True)  # not a view of both halves
        self._seen = {}
        return taken
