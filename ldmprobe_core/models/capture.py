"""Forward hooks that capture the activations of named modules (conditional half only).

Activations are copied to the host while the device computes on: a `HostTransfer` begins the copy,
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
        architecture: tells which modules return text beside the image.
        batch_copies: copies of the batch in one call: 2 under guidance (unconditional, then
            conditional), else 1.  It is declared, then checked; shapes alone do not tell it.
        network: the network that the modules belong to; its text input gives the number of text
            tokens.  None if no module returns text.
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
        self._captured: dict[str, Tensor] = {}
        self._batch_sizes: dict[str, int] = {}
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

        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            grid = to_grid(output, self._grid, item)
            self._batch_sizes[name] = len(grid)
            self._captured[name] = grid[-(len(grid) // self.batch_copies) :].detach()

        return record

    def discard(self) -> None:
        """Discard the outputs of the last call, such as guidance's unconditional one."""
        self._captured = {}

    def pop_activations(self, samples: int) -> dict[str, Tensor]:
        """Return the outputs of the last call by layer and forget them.

        Args:
            samples: number of samples of the batch.

        Returns:
            float16 (sample, y, x, channel) on the device, a copy each.

        Raises:
            RuntimeError: a module was not called, or its batch was not ``samples`` times the
                declared copies.
        """
        uncalled = [name for name in self.modules if name not in self._captured]
        if uncalled:
            raise RuntimeError(
                f"no activations came from {', '.join(uncalled)}: the module was not called "
                "(a compiled model bypasses hooks)"
            )
        for name, size in self._batch_sizes.items():
            if size != samples * self.batch_copies:
                raise RuntimeError(
                    f"{name} has a batch of {size}, not {samples} x {self.batch_copies}: the "
                    "pipeline's guidance is not what was declared"
                )
        activations = {
            name: self._captured[name].to(torch.float16, copy=True)  # no view of the whole batch
            for name in self.modules
        }
        self._captured = {}
        return activations
