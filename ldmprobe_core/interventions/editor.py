"""Generation of images with edited activations, by hooks on the denoiser's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldmprobe_core.interventions.edit import (
    EditDirection,
    edit_by_gradient_descent,
    random_change_like,
    target_reading,
)
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.models.layers import image_output_index
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.models.token_grid import Grid, change_grid
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.samples import Sample


class Editor:
    """Editor of the denoiser's layer outputs while a pipeline generates images.

    Calling an editor returns a context manager.  Edits are made only inside that context.

    Args:
        sampler: sampler of the pipeline whose denoiser is hooked.
        directions: edit direction of each edited cell, by (step from 1, layer).
        change: function (step, layer, direction, tokens) that returns the edited tokens of a cell;
            `make_edit` builds one.
    """

    def __init__(
        self,
        sampler: PipelineSampler,
        directions: dict[tuple[int, str], EditDirection],
        change: Any,
    ) -> None:
        self.sampler, self.directions, self.change = sampler, directions, change
        self._calls = 0
        self._grid: Grid = sampler.architecture.grid

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Attach hooks to the edited layers for one pipeline call, and remove them afterwards."""
        modules = dict(self.sampler.denoiser.named_modules())
        denoiser = self.sampler.denoiser
        hooks = [denoiser.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name in {name for _, name in self.directions}:
            hooks.append(modules[name].register_forward_hook(self._hook(name, modules[name])))
        self._calls = 0
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, _denoiser: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self._calls += 1
        if self.sampler.architecture.joint_block_classes:
            self._grid = replace(self._grid, text=kwargs["encoder_hidden_states"].shape[1])

    def _hook(self, name: str, module: nn.Module) -> Any:
        item = image_output_index(self.sampler.architecture, module)
        guidance = self.sampler.guidance

        def edit(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            step, call = divmod(self._calls - 1, guidance.calls_per_step)
            direction = self.directions.get((step + 1, name))
            # Edit only the conditional call, because probes are fitted to its activations.  If
            # guidance calls the denoiser twice in a step, the first of them is conditional.
            if direction is None or call > 0:
                return None
            return change_grid(
                output,
                self._grid,
                item,
                guidance.batch_copies,
                lambda tokens: self.change(step + 1, name, direction, tokens),
            )

        return edit


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
    return sampler.decode(latents)


def make_edit(
    spec: Intervention, kind: str, targets: np.ndarray, random: torch.Generator | None
) -> Any:
    """Return the function that edits one layer's activations at one step, for an `Editor`.

    Args:
        spec: method, strength and confidence of the edit.
        kind: kind of the probes in the edit directions.
        targets: target maps (n, Y, X) at the image's size.
        random: generator for the control that replaces each edit by a random change of the same
            norm; None applies the edits themselves.

    Returns:
        function (step, layer, direction, tokens) that returns edited tokens, (n, y, x, channel).
    """
    mask = property_of(spec.prop).is_mask
    maps = targets.astype(np.float64)
    full_targets = torch.from_numpy(maps).float()
    readings: dict[tuple[int, int], Tensor] = {}

    def change(_step: int, _layer: str, direction: EditDirection, tokens: Tensor) -> Tensor:
        grid = (tokens.shape[1], tokens.shape[2])
        direction = EditDirection(
            direction.weight.to(tokens.device),
            direction.bias.to(tokens.device),
            direction.step.to(tokens.device),
        )
        if spec.method == "adam":
            edited = edit_by_gradient_descent(
                tokens, full_targets.to(tokens.device), direction, mask,
                spec.iterations, spec.learning_rate,
            )  # fmt: skip
        else:
            if grid not in readings:
                share = block_means(maps, grid)
                readings[grid] = torch.from_numpy(
                    target_reading(share, kind, mask, spec.confidence)
                ).float()
            edited = direction.exact(tokens, readings[grid].to(tokens.device), spec.strength)
        if random is None:
            return edited
        return tokens + random_change_like(edited - tokens, random)

    return change
