"""Run the pipeline on one batch and record images, step images and activations.

The pipeline itself does the sampling; everything is read off through hooks on the denoiser and a
`SchedulerTap`, so what is probed is what diffusers computes.  Activations are handed to a sink step
by step, so that memory holds only one step of them.  For source images the tap returns the image's
latents with the next step's noise to the pipeline, in place of the step's own result.
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
"""Pixels that are decoded together: one image of 512 x 512, or 16 of 64 x 64.

Larger parts do not fit a CPU's cache and take a quarter longer for each image.
"""

ActivationSink = Callable[[str, int, HostTransfer], None]
"""Receiver of activations: network ("trained", "permuted"), step from 0, layers of that step."""


@dataclass
class SampledBatch:
    """One batch of samples.

    Attributes:
        image: finished images, or the source images, (sample, y, x, rgb) uint8.
        trajectory: decoded latents after every step, (sample, step, y, x, rgb) uint8; the last
            step's are the finished images.  None without step images.
        clean: the predicted clean image at every step, decoded, same shape; None likewise.
        timestep: the scheduler's number of every step.
    """

    image: np.ndarray
    trajectory: np.ndarray | None
    clean: np.ndarray | None
    timestep: list[float]


class PipelineSampler:
    """Sampler of one study's batches on a loaded pipeline.

    Args:
        pipeline: loaded diffusers pipeline in eval mode, with the study's scheduler.
        architecture: architecture of the pipeline.
        study: gives steps, guidance, layers and the switch of the permuted control.
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
        source_images: np.ndarray | None = None,
        step_images: bool = True,
    ) -> SampledBatch:
        """Sample one batch; each sample has its own generator, seeded on the CPU.

        Args:
            samples: prompts and seeds.
            sink: receives activations as they are computed: of the denoisers' layers and the
                latents during sampling, step by step, of the decoder's layers afterwards.
            source_images: (sample, y, x, rgb) uint8, whose noised latents replace the sampled ones.
            step_images: also decode the latents and the predicted clean image of each step, which
                takes about as long as the denoiser itself.

        Raises:
            RuntimeError: the pipeline called the denoiser otherwise than was declared.
            NonFiniteError: a network or the scheduler gave NaN or infinite values.
        """
        torch.set_num_threads(self.study.sampling.threads)  # a thread's own setting: set each time
        steps = self._run_pipeline(samples, sink, source_images, step_images)
        for number, latents in enumerate(steps.after, 1):
            require_finite(latents, "scheduler", number)
        decoded = self._decode_steps(steps.after, sink, step_images)
        return SampledBatch(
            image=decoded[-1] if source_images is None else source_images,
            trajectory=np.stack(decoded, axis=1) if step_images else None,
            clean=np.stack([self.decode(latents) for latents in steps.clean], axis=1)
            if step_images
            else None,
            timestep=steps.timestep,
        )

    def _run_pipeline(
        self,
        samples: list[Sample],
        sink: ActivationSink,
        source_images: np.ndarray | None,
        predicts_clean: bool,
    ) -> StepRecorder:
        """Run the pipeline on a batch up to its final latents, with hooks and tap in place."""
        generators = [torch.Generator().manual_seed(sample.seed) for sample in samples]
        steps, arguments, replace = StepRecorder(), {}, None
        if source_images is not None:
            replace, arguments["latents"] = self._noised_images(source_images, generators)
        negative = self.study.prompts.negative
        arguments |= self.architecture.arguments(
            self.scale, None if negative is None else [negative] * len(samples)
        )
        scheduler, before = self.pipeline.scheduler, self._latents_sink(sink)
        with ExitStack() as stack:
            capture = self._capture(self.denoiser, self.guidance.batch_copies, captures_vae=False)
            stack.enter_context(capture)
            stack.enter_context(self._tap_denoiser(capture, steps, sink, len(samples)))
            stack.enter_context(
                SchedulerTap(scheduler, steps, self.guidance, before, predicts_clean, replace)
            )
            self.pipeline(
                prompt=[sample.prompt for sample in samples],
                num_inference_steps=self.study.sampling.steps,
                generator=generators,
                output_type="latent",
                **arguments,
            )
        return steps

    def _decode_steps(
        self, after: list[Tensor], sink: ActivationSink, step_images: bool
    ) -> list[np.ndarray]:
        """Images of the latents after each step, or after the last step alone.

        All steps are decoded if layers of the decoder are captured.
        """
        decoded, last = [], len(after) - 1
        for step, latents in enumerate(after):
            if step_images or self.captures_vae or step == last:
                vae = self.pipeline.vae
                decoded.append(self._decode(latents, vae, partial(sink, "trained", step)))
            if self.permuted_vae is not None:
                self._decode(latents, self.permuted_vae, partial(sink, "permuted", step))
        return decoded

    def _latents_sink(self, sink: ActivationSink) -> Callable[[int, Tensor], None]:
        """Callback that records the latents when ``controls.latents`` is on."""

        def record(step: int, latents: Tensor) -> None:
            if self.study.controls.latents:
                grid = self.architecture.unpack(latents).movedim(1, -1)
                sink("trained", step, HostTransfer({LATENTS: grid.to(torch.float16, copy=True)}))

        return record

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
        self, capture: ActivationCapture, steps: StepRecorder, sink: ActivationSink, samples: int
    ) -> Any:
        """Hook that records each denoiser call and repeats it on the permuted denoiser."""
        permuted_capture = (
            self._capture(self.permuted_denoiser, 1, captures_vae=False)
            if self.permuted_denoiser
            else None
        )

        def record(_denoiser: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            number = len(steps.after) + 1
            text = {n: v for n, v in kwargs.items() if n not in ("sample", "hidden_states")}
            require_finite(text, "text encoder", number, samples)
            require_finite(output, self.architecture.denoiser, number, samples)
            steps.calls += 1
            if steps.calls > 1:  # guidance's unconditional call, which comes second
                capture.discard()
                return
            step = len(steps.after)
            sink("trained", step, HostTransfer(capture.pop_activations(samples)))
            if self.permuted_denoiser is None or permuted_capture is None:
                return
            args, kwargs = _conditional_call(args, kwargs, self.guidance.batch_copies)
            with permuted_capture:
                self.permuted_denoiser(*args, **kwargs)
            sink("permuted", step, HostTransfer(permuted_capture.pop_activations(samples)))

        stack = ExitStack()
        stack.callback(self.denoiser.register_forward_hook(record, with_kwargs=True).remove)
        return stack

    def _noised_images(
        self, source_images: np.ndarray, generators: list[torch.Generator]
    ) -> tuple[Callable[[int], Tensor], Tensor]:
        """Noised latents of source images at each step, and the initial latents."""
        pipeline, architecture = self.pipeline, self.architecture
        vae = pipeline.vae
        images = torch.from_numpy(np.ascontiguousarray(source_images)).permute(0, 3, 1, 2).float()
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

        def latents_at(step: int) -> Tensor:
            if step == len(scheduler.timesteps):
                return clean
            return noised(scheduler, clean, noise, step)

        # The pipeline takes unit noise and scales it itself.
        start = latents_at(0) / float(getattr(scheduler, "init_noise_sigma", 1.0))
        return latents_at, start.to(next(self.denoiser.parameters()).dtype)

    @property
    def _decode_batch(self) -> int:
        height, width = self.architecture.size
        return max(1, _PIXELS_PER_DECODE // (height * width))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents in the pipeline's layout to images (sample, y, x, rgb) uint8."""
        return self._decode(latents, self.pipeline.vae, None)

    def _decode(
        self, latents: Tensor, vae: Any, sink: Callable[[HostTransfer], None] | None
    ) -> np.ndarray:
        """Decode latents in the pipeline's layout to images (sample, y, x, rgb) uint8.

        Args:
            sink: receives the activations of the decoder's captured layers.
        """
        images, parts = [], []
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
                    parts.append(capture.pop_activations(len(part)))
        if captures_vae and sink is not None:
            layers = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            sink(HostTransfer(layers))
        return np.concatenate(images)


def _permuted(network: nn.Module) -> nn.Module:
    """Copy of a network with every weight tensor permuted."""
    permuted = copy.deepcopy(network)
    permute_weights(permuted)
    return permuted


def _conditional_call(args: tuple, kwargs: dict, batch_copies: int) -> tuple[tuple, dict]:
    """Arguments of a call with the conditional copy of every batched tensor, dicts included."""

    def conditional(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 0 and batch_copies > 1 and len(value) > 1:
            return value[len(value) // batch_copies * (batch_copies - 1) :]
        if isinstance(value, dict):
            return {key: conditional(part) for key, part in value.items()}
        return value

    return tuple(conditional(a) for a in args), {k: conditional(v) for k, v in kwargs.items()}


def _to_images(tensor: Tensor) -> np.ndarray:
    """Convert float (n, rgb, y, x) in -1..1 to uint8 (n, y, x, rgb), as diffusers does."""
    unit = (tensor / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return (unit * 255).round().astype(np.uint8)
