"""Forward hooks that capture the outputs of a network's modules as activations.

Under classifier-free guidance a network processes each sample twice, with and without its prompt.
Only the activations with the prompt (the conditional ones) are captured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.models.capture_points.channels import CapturePoint
from ldmprobe_core.models.layers import image_output_index
from ldmprobe_core.models.token_grid import mean_of_blocks, to_grid
from ldmprobe_core.study.sections import Capture


class _EnoughCapturedError(Exception):
    """Control flow: ends the forward pass of a network whose further outputs are not used."""


class ActivationCapture:
    """Context manager that captures the outputs of modules inside its ``with`` block.

    After each call of the network, `pop_activations` returns the outputs of that call.

    Args:
        modules: layer name to module, or to a capture point inside one.
        architecture: architecture of the model, which gives the token grid and the modules whose
            output includes text tokens.
        batch_copies: number of copies of the batch in one call: 2 if guidance puts an unconditional
            copy before the conditional one, else 1.
        network: network that the modules belong to, whose text input gives the number of text
            tokens.  None if no module's output includes text tokens.
        form: section ``capture`` of the study, for the data type and the pooling of activations.

    Attributes:
        calls: number of outputs captured since activations were last popped or discarded.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module | CapturePoint],
        architecture: Architecture,
        batch_copies: int = 1,
        network: nn.Module | None = None,
        form: Capture | None = None,
    ) -> None:
        self.modules, self.architecture, self.batch_copies, self.network = (
            modules,
            architecture,
            batch_copies,
            network,
        )
        self.calls = 0
        self._grid, self._form = architecture.grid, form or Capture()
        self._captured: dict[str, Tensor] = {}
        self._batch_sizes: dict[str, int] = {}
        self._hooks: list[Any] = []
        self._most_calls: int | None = None

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
        """Record the number of text tokens in the network's input; serves as a forward pre-hook."""
        text = kwargs["encoder_hidden_states"]
        self._grid = replace(self._grid, text=text.shape[1])

    def _hook(self, name: str) -> Callable[..., None]:
        """Build the forward hook that captures the output of one layer."""
        item = image_output_index(self.architecture, self.modules[name])

        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            grid = to_grid(output, self._grid, item)
            self._batch_sizes[name] = len(grid)
            # Copied here, because the network may change its own output in place afterwards, as
            # FreeU does.  A view would also keep the memory of the complete output alive.
            conditional = grid[-(len(grid) // self.batch_copies) :].detach()
            self._captured[name] = self._stored_form(conditional)
            self.calls += 1
            if self.calls == self._most_calls:
                raise _EnoughCapturedError

        return record

    def run_network(
        self, network: nn.Module, args: Any, kwargs: dict[str, Any], calls: int
    ) -> None:
        """Call a network inside the ``with`` block for its captured outputs alone.

        The forward pass ends after the last of them, because its result is not used.

        Args:
            network: network that the modules belong to.
            args, kwargs: arguments of the call.
            calls: number of outputs that a complete pass captures, such as `calls` of a capture of
                the same modules in another network of the same class.
        """
        self._most_calls = calls
        try:
            network(*args, **kwargs)
        except _EnoughCapturedError:
            pass
        finally:
            self._most_calls = None

    def discard(self) -> None:
        """Discard the outputs of the network's last call, such as an unconditional call."""
        self._captured, self.calls = {}, 0

    def pop_activations(self, samples: int) -> dict[str, Tensor]:
        """Return the activations of the network's last call, and remove them from this object.

        Args:
            samples: number of samples in the batch.

        Returns:
            layer name to activations (sample, y, x, channel) in the stored data type, copied on
            their device, in the order in which the network called the layers.

        Raises:
            RuntimeError: a module was not called, or its batch size was not ``samples`` times
                ``batch_copies``.
        """
        uncalled = [name for name in self.modules if name not in self._captured]
        if uncalled:
            raise RuntimeError(
                f"no activations came from {', '.join(uncalled)}: the module was not called. Fix: "
                "if the model was compiled, load it without compilation, which bypasses hooks; "
                "else capture other layers"
            )
        for name, size in self._batch_sizes.items():
            if size != samples * self.batch_copies:
                raise RuntimeError(
                    f"{name}: the batch size is {size}, not {samples} samples x "
                    f"{self.batch_copies} copies as the Architecture declares. Fix: correct the "
                    "method guidance of that Architecture class"
                )
        activations = self._captured
        self.discard()
        return activations

    def _stored_form(self, tokens: Tensor) -> Tensor:
        """Average tokens over square blocks if the grid is large; copy them in the run's dtype."""
        side = self._form.block_side(tokens.shape[1], tokens.shape[2])
        if side > 1:
            tokens = mean_of_blocks(tokens, side)
        return tokens.to(getattr(torch, self._form.dtype), copy=side == 1)
