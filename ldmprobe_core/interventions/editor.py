"""Generation of images with edited activations, by hooks on the denoiser's layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.capture_points.channels import CapturePoint
from ldmprobe_core.models.layers import image_output_index, named_points
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.models.token_grid import Grid, change_grid
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.samples import Sample

Change = Callable[[int, str, Tensor], Tensor]
"""Function (step from 1, layer, tokens) that returns edited tokens, (n, y, x, channel) float32."""


class Editor:
    """Editor of the denoiser's layer outputs while a pipeline generates images.

    Calling an editor returns a context manager.  Edits are made only inside that context.

    Args:
        sampler: sampler of the pipeline whose denoiser is hooked.
        cells: edited cells, as pairs of step (from 1) and layer; the layer ``latents`` stands for
            the denoiser's input.
        change: function that edits the tokens of a cell.
    """

    def __init__(
        self, sampler: PipelineSampler, cells: Iterable[tuple[int, str]], change: Change
    ) -> None:
        self.sampler, self.cells, self.change = sampler, set(cells), change
        self._calls = 0
        self._edits_made: Counter[tuple[int, str]] = Counter()
        self._grid: Grid = sampler.architecture.grid

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Attach hooks to the edited layers for one pipeline call, and remove them afterwards.

        Raises:
            UserError: an edited layer did not run exactly once in an edited step, or its edited
                activations are not finite.
        """
        modules = named_points(self.sampler.denoiser)
        denoiser = self.sampler.denoiser
        hooks = [denoiser.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name in sorted({name for _, name in self.cells} - {LATENTS}):
            hooks.append(modules[name].register_forward_hook(self._hook(name, modules[name])))
        self._calls = 0
        self._edits_made.clear()
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for step, layer in sorted(self.cells):
            if self._edits_made[step, layer] != 1:
                raise UserError(
                    f"layers: {layer} ran {self._edits_made[step, layer]} times at step {step}, "
                    "but only layers that run once per step can be edited. Fix: leave this layer "
                    "out of layers."
                )

    @property
    def _step(self) -> int:
        """Current sampler step, from 1."""
        return (self._calls - 1) // self.sampler.guidance.calls_per_step + 1

    def _edits(self, name: str) -> bool:
        """Return whether a layer is edited in the current denoiser call.

        Only the conditional call is edited, because probes are fitted to its activations.  If
        guidance calls the denoiser twice in a step, the first of them is conditional.
        """
        first = (self._calls - 1) % self.sampler.guidance.calls_per_step == 0
        return first and (self._step, name) in self.cells

    def _begin(
        self, _denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Count the denoiser call, and edit its input latents if the intervention edits them."""
        self._calls += 1
        if self.sampler.architecture.joint_block_classes:
            self._grid = replace(self._grid, text=kwargs["encoder_hidden_states"].shape[1])
        if not self._edits(LATENTS):
            return None
        name = next((key for key in ("sample", "hidden_states") if key in kwargs), None)
        given = args[0] if name is None else kwargs[name]
        # Some schedulers scale the latents before the denoiser call.  Probes read unscaled latents,
        # so the scaling is undone for the edit.
        time = kwargs["timestep"] if "timestep" in kwargs else args[1]
        one = torch.ones((), dtype=torch.float64)
        scale = getattr(self.sampler.pipeline.scheduler, "scale_model_input", lambda x, _: x)
        factor = float(scale(one, time.reshape(-1)[0] if isinstance(time, Tensor) else time))

        def change(tokens: Tensor) -> Tensor:
            # Scale only the difference, so that unchanged latents keep their exact bits.
            latents = tokens / factor
            return tokens + (self._edit(LATENTS, latents) - latents) * factor

        # Probes read latents as a map, so latents that a pipeline packs into tokens are unpacked.
        architecture = self.sampler.architecture
        latents_map = architecture.unpack(given)
        copies = self.sampler.guidance.batch_copies
        edited = architecture.pack(change_grid(latents_map, self._grid, 0, copies, change))
        return ((edited, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: edited})

    def _hook(self, name: str, module: nn.Module | CapturePoint) -> Any:
        """Build the forward hook that edits the output of one layer."""
        item = image_output_index(self.sampler.architecture, module)
        guidance = self.sampler.guidance

        def edit(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if not self._edits(name):
                return None
            return change_grid(
                output,
                self._grid,
                item,
                guidance.batch_copies,
                lambda tokens: self._edit(name, tokens),
            )

        return edit

    def _edit(self, name: str, tokens: Tensor) -> Tensor:
        """Edit the tokens of a layer at the current step, and count the edit.

        Raises:
            UserError: an edited value is NaN or infinite.
        """
        edited = self.change(self._step, name, tokens)
        self._edits_made[self._step, name] += 1
        if edited is tokens:  # The layer is read by probes, not edited.
            return tokens
        # Check in the denoiser's dtype, such as float16, in which large values become infinite.
        dtype = next(self.sampler.denoiser.parameters()).dtype
        finite = torch.isfinite(edited.to(dtype))
        if not bool(finite.all()):
            raise UserError(
                f"layers: the edited activations of {name} at step {self._step} are not finite "
                f"({int((~finite).sum())} of {finite.numel()} values). Fix: leave this layer out "
                "of layers, or choose other steps or a smaller dose."
            )
        return edited


@torch.no_grad()
def sample_edited(
    sampler: PipelineSampler, samples: list[Sample], editor: Editor | None
) -> np.ndarray:
    """Generate the images of samples with edited activations.

    Args:
        sampler: sampler of the pipeline.
        samples: samples that give the prompts and seeds.
        editor: editor that is active during generation; None generates without edits.

    Returns:
        final images (sample, y, x, rgb) uint8.
    """
    pipeline, study = sampler.pipeline, sampler.study
    torch.set_num_threads(study.sampling.threads)
    negative = study.prompts.negative
    arguments = sampler.architecture.arguments(
        sampler.scale, None if negative is None else [negative] * len(samples)
    )
    call = {
        "prompt": [sample.prompt for sample in samples],
        "num_inference_steps": study.sampling.steps,
        "generator": [torch.Generator().manual_seed(sample.seed) for sample in samples],
        "output_type": "latent",
        **arguments,
    }
    if editor is None:
        latents = pipeline(**call).images
    else:
        with editor():
            latents = pipeline(**call).images
    return sampler.decode(sampler.architecture.from_output(pipeline.vae, latents))
