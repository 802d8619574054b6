"""Sampling of a batch of images with a diffusers pipeline, and capture of activations.

The unmodified diffusers pipeline runs the sampling loop.  Hooks on the denoiser record activations,
and a `SchedulerTap` records the latents of each step.  Activations are passed to a sink after every
step, so that memory holds the activations of only one step.  If the study has source images, the
tap replaces the result of each step by the latents of the source image, noised to the level of the
next step.
"""

from __future__ import annotations

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
from ldmprobe_core.models.host_transfer import HostTransfer
from ldmprobe_core.models.layers import capturable_modules, match_layers, named_points
from ldmprobe_core.models.loading import untrained_copy
from ldmprobe_core.models.output_checks import require_finite
from ldmprobe_core.models.scheduler_tap import SchedulerTap, StepRecorder
from ldmprobe_core.models.schedulers import noised
from ldmprobe_core.models.token_grid import (
    conditional_call,
    decoded_images,
    images_per_decode,
    mean_embedding,
)
from ldmprobe_core.study.batching import StepImages
from ldmprobe_core.study.layers import LATENTS, VAE
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study

ActivationSink = Callable[[str, int, HostTransfer], None]
"""Function that receives the activations of one step.

Its arguments are the network ("trained", or "permuted" for the copy with permuted weights), the
index of the sampler step (from 0), and the activations by layer.
"""


@dataclass
class SampledBatch:
    """Generated images of one batch, and the images decoded from the latents of each step.

    Attributes:
        image: (sample, y, x, rgb) uint8, the images after the last step; the source images if the
            study has any.
        trajectory: (sample, step, y, x, rgb) uint8, the latents after each step, decoded to images,
            of the samples and steps for which they were requested; None without any.
        clean: (sample, step, y, x, rgb) uint8, the clean latents that the denoiser predicts at each
            step, decoded to images, likewise.
        timestep: the scheduler's timestep of each step, such as 981.0.
        prompt_embedding: (sample, channel) float32, the mean over the text tokens of the embedding
            of each prompt.  None if the denoiser receives no text.
    """

    image: np.ndarray
    trajectory: np.ndarray | None
    clean: np.ndarray | None
    timestep: list[float]
    prompt_embedding: np.ndarray | None


class PipelineSampler:
    """Sampler that generates a study's batches with a loaded diffusers pipeline.

    Args:
        pipeline: loaded diffusers pipeline in eval mode, with the study's scheduler.
        architecture: description of the pipeline's class.
        study: study whose settings are used: steps, guidance, captured layers and controls.
    """

    def __init__(self, pipeline: Any, architecture: Architecture, study: Study) -> None:
        self.pipeline, self.architecture, self.study = pipeline, architecture, study
        self.denoiser: nn.Module = getattr(pipeline, architecture.denoiser)
        modules = capturable_modules(self.denoiser, pipeline.vae)
        self.layers = match_layers(architecture, list(modules), study.capture.layers)
        self.captures_vae = any(name.startswith(VAE) for name in self.layers)
        self.permuted_denoiser: nn.Module | None = None
        self.permuted_vae: nn.Module | None = None
        if study.controls.untrained:
            random = study.controls.random_weights is not None
            self.permuted_denoiser = untrained_copy(self.denoiser, random)
            if self.captures_vae:
                self.permuted_vae = untrained_copy(pipeline.vae, random)
        self.dtype = getattr(torch, study.capture.dtype)
        self.scale = scale = study.sampling.guidance if study.images is None else 1.0
        self.guidance = architecture.guidance(scale, study.prompts.negative)

    @torch.no_grad()
    def sample(
        self,
        samples: list[Sample],
        sink: ActivationSink,
        source_images: np.ndarray | None = None,
        step_images: bool | StepImages = True,
        permuted: bool = True,
    ) -> SampledBatch:
        """Generate the images of one batch and pass their activations to a sink.

        Each sample has a random generator of its own on the CPU, so that its image does not depend
        on the rest of the batch.

        Args:
            samples: samples of the batch, each with a prompt and a seed.
            sink: function that receives the activations: those of the denoiser (and the latents, if
                they are a control) at each step, those of the VAE's decoder after the last step.
            source_images: (sample, y, x, rgb) uint8 images to use instead of generated ones: at
                each step the denoiser receives their noised latents.  None generates images.
            step_images: samples and steps whose latents and predicted clean latents are decoded,
                which takes longer than denoising; True decodes all of them, and False none.
            permuted: whether to run the networks with permuted weights too, if the study has that
                control.

        Raises:
            RuntimeError: the number or the batch size of the denoiser's calls differs from that
                which the architecture declares.
            NonFiniteError: a network or the scheduler computed NaN or infinite values.
        """
        # Set PyTorch's number of CPU threads at each call, because the setting holds only for the
        # calling thread, and this method may be called in any thread.
        torch.set_num_threads(self.study.sampling.threads)
        steps = self._run_pipeline(samples, sink, source_images, bool(step_images), permuted)
        for number, latents in enumerate(steps.after, 1):
            require_finite(latents, "scheduler", number)
        chosen = None if step_images is True or not step_images else step_images
        if step_images is True:
            chosen = StepImages(np.arange(len(samples)), np.arange(len(steps.after)))
        image, trajectory = self._decode_steps(steps.after, sink, chosen, permuted)
        clean = None
        if chosen is not None:
            members = torch.from_numpy(chosen.samples)
            clean = np.stack([self.decode(steps.clean[i][members]) for i in chosen.steps], axis=1)
        text = steps.prompt_embedding
        return SampledBatch(
            image=image if source_images is None else source_images,
            trajectory=trajectory,
            clean=clean,
            timestep=steps.timestep,
            prompt_embedding=None if text is None else text.cpu().numpy(),
        )

    def _run_pipeline(
        self,
        samples: list[Sample],
        sink: ActivationSink,
        source_images: np.ndarray | None,
        predicts_clean: bool,
        permuted: bool,
    ) -> StepRecorder:
        """Run the pipeline on a batch without decoding, and record the latents of every step.

        Args:
            predicts_clean: whether to record the predicted clean latents of every step.
            permuted: whether to run the denoiser with permuted weights too.

        Returns:
            latents and timesteps of every step; the sink has received the denoiser's activations.
        """
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
            stack.enter_context(self._tap_denoiser(capture, steps, sink, len(samples), permuted))
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
        self, after: list[Tensor], sink: ActivationSink, chosen: StepImages | None, permuted: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Decode the latents after each step, and pass the VAE decoder's activations to the sink.

        If layers of the decoder are captured, every step of every sample is decoded.

        Args:
            after: latents after each step, in the pipeline's layout.
            chosen: samples and steps whose images are returned; None returns finished images only.
            permuted: whether to decode with the permuted copy of the VAE too.

        Returns:
            (sample, y, x, rgb) uint8 finished images, and (chosen sample, chosen step, y, x, rgb)
            uint8 images; the latter is None without a choice.
        """
        vae, last, parts = self.pipeline.vae, len(after) - 1, []
        members = None if chosen is None else torch.from_numpy(chosen.samples)
        for step, latents in enumerate(after):
            wanted = chosen is not None and step in chosen.steps
            if self.captures_vae or step == last:
                decoded = self._decode(latents, vae, partial(sink, "trained", step))
                if chosen is not None and wanted:
                    parts.append(decoded[chosen.samples])
            elif wanted:
                parts.append(self.decode(latents[members]))
            if self.permuted_vae is not None and permuted:
                self._decode(latents, self.permuted_vae, partial(sink, "permuted", step))
        return decoded, np.stack(parts, axis=1) if parts else None

    def _latents_sink(self, sink: ActivationSink) -> Callable[[int, Tensor], None]:
        """Build a callback that passes the latents at the start of each step to `sink`.

        The callback does nothing if ``controls.latents`` is off.
        """

        def record(step: int, latents: Tensor) -> None:
            if self.study.controls.latents:
                grid = self.architecture.unpack(latents).movedim(1, -1)
                sink("trained", step, HostTransfer({LATENTS: grid.to(self.dtype, copy=True)}))

        return record

    def _capture(
        self, network: nn.Module, batch_copies: int, captures_vae: bool
    ) -> ActivationCapture:
        """Build the hooks that capture the denoiser's layers, or the VAE's if ``captures_vae``."""
        modules = named_points(network)
        prefix = VAE if captures_vae else ""
        names = [name for name in self.layers if name.startswith(VAE) == captures_vae]
        chosen = {name: modules[name.removeprefix(prefix)] for name in names}
        whole = None if captures_vae else network
        return ActivationCapture(chosen, self.architecture, batch_copies, whole, self.study.capture)

    def _tap_denoiser(
        self,
        capture: ActivationCapture,
        steps: StepRecorder,
        sink: ActivationSink,
        samples: int,
        permuted: bool,
    ) -> Any:
        """Hook the denoiser so that each call passes its activations to the sink.

        If `permuted`, and the study has the permuted-weights control, the hook calls the permuted
        denoiser with the same inputs.

        Args:
            capture: hooks on the layers of the denoiser.
            steps: record of the steps so far, which gives the index of the current step.
            samples: number of samples in the batch.
            permuted: whether to call the permuted denoiser.

        Returns:
            a context manager; the hook is removed when its block ends.
        """
        permuted_capture = (
            self._capture(self.permuted_denoiser, 1, captures_vae=False)
            if self.permuted_denoiser and permuted
            else None
        )

        def record(_denoiser: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            number = len(steps.after) + 1
            inputs = {n: v for n, v in kwargs.items() if n not in ("sample", "hidden_states")}
            require_finite(inputs, "text encoder", number, samples)
            require_finite(output, self.architecture.denoiser, number, samples)
            steps.calls += 1
            text = kwargs.get("encoder_hidden_states")
            if steps.prompt_embedding is None and text is not None:
                # In the first call of a step, the last rows of `text` belong to the samples'
                # prompts.  If the call has two copies of the batch, the rows before them belong to
                # the negative prompts.  Pipelines name the mask of the prompts' tokens differently.
                mask = kwargs.get(
                    "encoder_hidden_states_mask", kwargs.get("encoder_attention_mask")
                )
                steps.prompt_embedding = mean_embedding(text, mask)[-samples:]
            # If guidance makes two calls per step, the second is the unconditional one, whose
            # activations are not probed.
            if steps.calls > 1:
                capture.discard()
                return
            step, outputs = len(steps.after), capture.calls
            sink("trained", step, HostTransfer(capture.pop_activations(samples)))
            if self.permuted_denoiser is None or permuted_capture is None:
                return
            args, kwargs = conditional_call(args, kwargs, self.guidance.batch_copies)
            with permuted_capture:
                permuted_capture.run_network(self.permuted_denoiser, args, kwargs, outputs)
            sink("permuted", step, HostTransfer(permuted_capture.pop_activations(samples)))

        stack = ExitStack()
        stack.callback(self.denoiser.register_forward_hook(record, with_kwargs=True).remove)
        return stack

    def _noised_images(
        self, source_images: np.ndarray, generators: list[torch.Generator]
    ) -> tuple[Callable[[int], Tensor], Tensor]:
        """Encode source images and prepare their noised latents.

        Args:
            source_images: (sample, y, x, rgb) uint8.
            generators: random generator of each sample, which draws its noise.

        Returns:
            a function from the number of finished steps to the latents that the next step starts
            from (without noise after the last step), in the pipeline's layout, and the latents to
            pass to the pipeline's call.
        """
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

        # The pipeline will multiply the latents that it receives by the scheduler's initial noise
        # level, so they are divided by that level here.
        start = latents_at(0) / float(getattr(scheduler, "init_noise_sigma", 1.0))
        return latents_at, architecture.as_input(start.to(next(self.denoiser.parameters()).dtype))

    @property
    def _decode_batch(self) -> int:
        """Number of images that one call of the VAE encodes or decodes."""
        return images_per_decode(*self.architecture.size)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents to images with the pipeline's VAE.

        Args:
            latents: (sample, channel, y, x), or (sample, token, channel) for Flux.

        Returns:
            (sample, y, x, rgb) uint8.

        Raises:
            NonFiniteError: the VAE computed NaN or infinite values.
        """
        return self._decode(latents, self.pipeline.vae, None)

    def _decode(
        self, latents: Tensor, vae: Any, sink: Callable[[HostTransfer], None] | None
    ) -> np.ndarray:
        """Decode latents to images (sample, y, x, rgb) uint8, and capture the decoder's layers.

        Args:
            latents: latents in the pipeline's layout.
            vae: the pipeline's VAE, or its copy with permuted weights.
            sink: function that receives the activations of the decoder's captured layers; None
                captures none.
        """
        images, parts = [], []
        captures_vae = self.captures_vae and sink is not None
        with ExitStack() as stack:
            if captures_vae:
                capture = self._capture(vae, 1, captures_vae=True)
                stack.enter_context(capture)
            for part in self.architecture.unpack(latents).split(self._decode_batch):
                decoded = self.architecture.decode(vae, part)
                # Only images of the trained VAE are used, so only these must be finite.  Images of
                # the VAE with permuted weights are discarded.
                if vae is self.pipeline.vae:
                    require_finite(decoded, "vae")
                images.append(decoded_images(decoded))
                if captures_vae:
                    parts.append(capture.pop_activations(len(part)))
        if captures_vae and sink is not None:
            layers = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            sink(HostTransfer(layers))
        return np.concatenate(images)
