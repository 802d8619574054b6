"""Run the pipeline on one batch and record images, step images and activations.

The pipeline itself does the sampling; everything is read off through hooks on the denoiser and a
wrapper around the scheduler's step, so what is probed is what diffusers computes.  Activations are
handed on step by step, so that they never pile up here.  Pictures of one's own go the same way: the
wrapper then hands the pipeline the picture's latents with the next step's noise, instead of what
the step made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.models.capture import ActivationCapture
from ldmprobe_core.models.finite import require_finite
from ldmprobe_core.models.host_transfer import HostTransfer
from ldmprobe_core.models.layers import VAE, capturable_modules, match_layers
from ldmprobe_core.models.loading import permute_weights
from ldmprobe_core.models.scheduler_tap import SchedulerTap, StepRecorder
from ldmprobe_core.models.schedulers import noised
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study

_PIXELS_PER_DECODE = 1 << 16
"""Pixels that are decoded together: one image of 512 x 512, or 16 of 64 x 64.  More of them no
longer fit a CPU's cache and take a quarter longer each."""

ActivationSink = Callable[[str, int, HostTransfer], None]
"""Takes what a network showed at a step: network ("trained", "permuted"), step from 0, layers."""


@dataclass
class SampledBatch:
    """One batch of samples.

    Attributes:
        image: finished images, (sample, y, x, rgb) uint8.
        trajectory: decoded latents after every step, (sample, step, y, x, rgb) uint8; the last
            step's are the finished images.  None where step images were not asked for.
        clean: the predicted clean image at every step, decoded, same shape.
        timestep: the scheduler's number of every step.
    """

    image: np.ndarray
    trajectory: np.ndarray | None
    clean: np.ndarray | None
    timestep: list[float]


class PipelineSampler:
    """Sampler of one study's batches on a loaded pipeline.

    Args:
        pipeline: in eval mode, with the study's scheduler.
        family: what is known of its architecture.
        study: decides steps, guidance, layers and whether the permuted control runs.
    """

    def __init__(self, pipeline: Any, architecture: Architecture, study: Study) -> None:
        self.pipeline, self.architecture, self.study = pipeline, architecture, study
        self.denoiser: nn.Module = getattr(pipeline, architecture.denoiser)
        modules = capturable_modules(self.denoiser, pipeline.vae)
        self.layers = match_layers(architecture, list(modules), study.capture.layers)
        self.captures_vae = any(name.startswith(VAE) for name in self.layers)
        self.permuted_denoiser: nn.Module | None = None
        self.permuted_vae: nn.Module | None = None
        if study.controls.permuted_weights:
            self.permuted_denoiser = _permuted(self.denoiser)
            self.permuted_vae = _permuted(pipeline.vae) if self.captures_vae else None
        scale = study.sampling.guidance if study.images is None else 1.0
        self.scale = scale
        self.guidance = architecture.guidance(scale, study.prompts.negative)

    @torch.no_grad()
    def sample(
        self,
        samples: list[Sample],
        sink: ActivationSink,
        pictures: np.ndarray | None = None,
        step_images: bool = True,
    ) -> SampledBatch:
        """Sample one batch; each sample has its own generator, seeded on the CPU.

        Args:
            keep: is handed what the networks show, as it comes: the denoisers' layers and the
                latents while the samples are on their way, step by step, the decoder's afterwards.
            pictures: (sample, y, x, rgb) uint8, to be looked at instead of generating images.
            step_images: also decode what each step looks like, twice a step; where only the
                finished image counts they cost as much as the denoiser itself.

        Raises:
            RuntimeError: the pipeline called the denoiser otherwise than was declared.
        """
        pipeline, sampling = self.pipeline, self.study.sampling
        torch.set_num_threads(sampling.threads)  # a thread's own setting: repeated in every task
        generators = [torch.Generator().manual_seed(sample.seed) for sample in samples]
        watch, arguments = StepRecorder(), {}
        replace = None
        if pictures is not None:
            replace, arguments["latents"] = self._noised_images(pictures, generators)
        negative = self.study.prompts.negative
        with ExitStack() as stack:
            capture = self._capture(self.denoiser, self.guidance.batch_copies, captures_vae=False)
            stack.enter_context(capture)
            stack.enter_context(self._tap_denoiser(capture, watch, sink, len(samples)))
            stack.enter_context(
                SchedulerTap(
                    pipeline.scheduler, watch, self.guidance, self._latents_sink(sink), replace
                )
            )
            pipeline(
                prompt=[sample.prompt for sample in samples],
                num_inference_steps=sampling.steps,
                generator=generators,
                output_type="latent",
                **self.architecture.arguments(
                    self.scale, None if negative is None else [negative] * len(samples)
                ),
                **arguments,
            )

        for number, latents in enumerate(watch.after, 1):
            require_finite(latents, "scheduler", number)
        last = len(watch.after) - 1
        after = []
        for step, latents in enumerate(watch.after):
            if step_images or self.captures_vae or step == last:
                after.append(self._decode(latents, pipeline.vae, partial(sink, "trained", step)))
            if self.permuted_vae is not None:
                self._decode(latents, self.permuted_vae, partial(sink, "permuted", step))
        return SampledBatch(
            image=after[-1] if pictures is None else pictures,
            trajectory=np.stack(after, axis=1) if step_images else None,
            clean=np.stack([self.decode(latents) for latents in watch.clean], axis=1)
            if step_images
            else None,
            timestep=watch.timestep,
        )

    def _latents_sink(self, sink: ActivationSink) -> Callable[[int, Tensor], None]:
        """Callback that records the latents when ``controls.latents`` is on."""

        def take(step: int, latents: Tensor) -> None:
            if self.study.controls.latents:
                grid = self.architecture.unpack(latents).movedim(1, -1)
                sink("trained", step, HostTransfer({LATENTS: grid.to(torch.float16, copy=True)}))

        return take

    def _capture(
        self, network: nn.Module, batch_copies: int, captures_vae: bool
    ) -> ActivationCapture:
        modules = dict(network.named_modules())
        prefix = VAE if captures_vae else ""
        names = [name for name in self.layers if name.startswith(VAE) == captures_vae]
        chosen = {name: modules[name.removeprefix(prefix)] for name in names}
        return ActivationCapture(
            chosen, self.architecture, batch_copies, None if captures_vae else network
        )

    def _tap_denoiser(
        self, capture: ActivationCapture, watch: StepRecorder, sink: ActivationSink, samples: int
    ) -> Any:
        """Hook that records each denoiser call and repeats it on the permuted denoiser."""
        permuted_capture = (
            self._capture(self.permuted_denoiser, 1, captures_vae=False)
            if self.permuted_denoiser
            else None
        )

        def look(_denoiser: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            number = len(watch.after) + 1
            text = {n: v for n, v in kwargs.items() if n not in ("sample", "hidden_states")}
            require_finite(text, "text encoder", number, samples)
            require_finite(output, self.architecture.denoiser, number, samples)
            watch.calls += 1
            if watch.calls > 1:  # guidance's unconditional call, which comes second
                capture.discard()
                return
            step = len(watch.after)
            sink("trained", step, HostTransfer(capture.pop_activations(samples)))
            if self.permuted_denoiser is None or permuted_capture is None:
                return
            half = _conditional_call(args, kwargs, self.guidance.batch_copies)
            with permuted_capture:
                self.permuted_denoiser(*half[0], **half[1])
            sink("permuted", step, HostTransfer(permuted_capture.pop_activations(samples)))

        stack = ExitStack()
        stack.callback(self.denoiser.register_forward_hook(look, with_kwargs=True).remove)
        return stack

    def _noised_images(
        self, pictures: np.ndarray, generators: list[torch.Generator]
    ) -> tuple[Callable[[int], Tensor], Tensor]:
        """Noised latents of source images at each step, and the initial latents."""
        pipeline, architecture = self.pipeline, self.architecture
        vae = pipeline.vae
        images = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
        parts = [
            architecture.encode(vae, part.to(vae.device) / 127.5 - 1)
            for part in images.split(self._decode_batch)
        ]
        clean = torch.cat(parts)
        noise = torch.cat(
            [torch.randn(1, *clean.shape[1:], generator=g, dtype=torch.float32) for g in generators]
        )
        clean, noise = architecture.pack(clean), architecture.pack(noise.to(clean))
        scheduler = pipeline.scheduler
        architecture.set_steps(scheduler, self.study.sampling.steps)

        def at(step: int) -> Tensor:
            if step == len(scheduler.timesteps):
                return clean
            return noised(scheduler, clean, noise, step)

        # The pipeline takes unit noise and scales it itself.
        start = at(0) / float(getattr(scheduler, "init_noise_sigma", 1.0))
        return at, start.to(next(self.denoiser.parameters()).dtype)

    @property
    def _decode_batch(self) -> int:
        height, width = self.architecture.size
        return max(1, _PIXELS_PER_DECODE // (height * width))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Images (sample, y, x, rgb) uint8 of latents as the pipeline hands them on."""
        return self._decode(latents, self.pipeline.vae, None)

    def _decode(
        self, latents: Tensor, vae: Any, sink: Callable[[HostTransfer], None] | None
    ) -> np.ndarray:
        """Latents as the pipeline hands them on to uint8 (sample, y, x, rgb).

        Args:
            keep: is handed the activations of the decoder's captured layers.
        """
        images, taken = [], []
        captures_vae = self.captures_vae and sink is not None
        with ExitStack() as stack:
            if captures_vae:
                capture = self._capture(vae, 1, captures_vae=True)
                stack.enter_context(capture)
            for part in self.architecture.unpack(latents).split(self._decode_batch):
                decoded = self.architecture.decode(vae, part)
                if vae is self.pipeline.vae:  # the permuted one is a control: its images are unused
                    require_finite(decoded, "vae")
                images.append(_to_images(decoded))
                if captures_vae:
                    taken.append(capture.pop_activations(len(part)))
        if captures_vae and sink is not None:
            sink(
                HostTransfer({name: torch.cat([part[name] for part in taken]) for name in taken[0]})
            )
        return np.concatenate(images)


def _permuted(network: nn.Module) -> nn.Module:
    permuted_denoiser = copy.deepcopy(network)
    permute_weights(permuted_denoiser)
    return permuted_denoiser


def _conditional_call(args: tuple, kwargs: dict, batch_copies: int) -> tuple[tuple, dict]:
    """The same call with the conditional part of every batched argument, dicts of them too."""

    def half(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 0 and batch_copies > 1 and len(value) > 1:
            return value[len(value) // batch_copies * (batch_copies - 1) :]
        if isinstance(value, dict):
            return {key: half(part) for key, part in value.items()}
        return value

    return tuple(half(a) for a in args), {k: half(v) for k, v in kwargs.items()}


def _to_images(tensor: Tensor) -> np.ndarray:
    """float (n, rgb, y, x) in -1..1 to uint8 (n, y, x, rgb), as diffusers' image processor does."""
    unit = (tensor / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return (unit * 255).round().astype(np.uint8)
