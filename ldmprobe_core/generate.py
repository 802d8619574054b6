"""Seeded sampling of one batch, watched: images, step images, activations.

The pipeline itself does the sampling; everything is read off through hooks on the denoiser and a
wrapper around the scheduler's step, so what is probed is what diffusers computes.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from ldmprobe_core.capture import Capture, match_layers
from ldmprobe_core.models import permute_weights
from ldmprobe_core.prompts import Sample
from ldmprobe_core.study import Study

_DECODE_AT_ONCE = 64


@dataclass
class Activations:
    """What one denoiser showed: per layer (sample, step, y, x, channel) float16, and the counts of
    non-finite values (sample, step) int32."""

    values: dict[str, np.ndarray]
    nonfinite: dict[str, np.ndarray]


@dataclass
class Generated:
    """One batch of samples.

    Attributes:
        image: finished images, (sample, y, x, rgb) uint8.
        trajectory: decoded latents after every step, (sample, step, y, x, rgb) uint8; the last
            step's are the finished images.
        clean: the predicted clean image at every step, decoded, same shape.
        timestep: the scheduler's number of every step.
        activations: of the denoiser.
        permuted: of the denoiser with permuted weights on the same inputs, where asked for.
    """

    image: np.ndarray
    trajectory: np.ndarray
    clean: np.ndarray
    timestep: list[float]
    activations: Activations
    permuted: Activations | None


@dataclass
class _Watch:
    """Collects what passes during one batch; one entry a step."""

    after: list[Tensor] = field(default_factory=list)
    clean: list[Tensor] = field(default_factory=list)
    timestep: list[float] = field(default_factory=list)
    layers: list[dict[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=list)
    permuted: list[dict[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=list)


class Generator:
    """A loaded pipeline, ready to generate batches of one study.

    Args:
        pipeline: in eval mode, with the study's scheduler.
        study: decides steps, guidance, layers and whether the permuted control runs.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, study: Study) -> None:
        self.pipeline, self.study = pipeline, study
        self.layers = match_layers(pipeline.unet, study.capture.layers)
        self.twin: nn.Module | None = None
        if study.controls.permuted:
            self.twin = copy.deepcopy(pipeline.unet)
            permute_weights(self.twin)

    @torch.no_grad()
    def generate(self, samples: list[Sample]) -> Generated:
        """Generate samples together; each has a generator of its own, seeded on the CPU."""
        pipeline, sampling = self.pipeline, self.study.sampling
        torch.set_num_threads(sampling.threads)  # a thread's own setting: repeated in every task
        guided = sampling.guidance > 1
        side = pipeline.unet.config.sample_size
        latent, halves = (side, side), 2 if guided else 1
        watch = _Watch()
        capture = Capture(pipeline.unet, self.layers, halves, latent)
        twin_capture = Capture(self.twin, self.layers, 1, latent) if self.twin else None

        def show_twin(_unet: nn.Module, args: tuple, kwargs: dict, _output: Any) -> None:
            watch.layers.append(capture.take(len(samples)))
            if self.twin is None or twin_capture is None:
                return
            half = _conditional(args, kwargs, halves)
            with twin_capture:
                self.twin(*half[0], **half[1])
            watch.permuted.append(twin_capture.take(len(samples)))

        with capture, _watched_step(pipeline.scheduler, watch):
            hook = pipeline.unet.register_forward_hook(show_twin, with_kwargs=True)
            try:
                pipeline(
                    prompt=[sample.prompt for sample in samples],
                    num_inference_steps=sampling.steps,
                    guidance_scale=sampling.guidance,
                    generator=[torch.Generator().manual_seed(s.seed) for s in samples],
                    output_type="latent",
                )
            finally:
                hook.remove()

        trajectory = self._decode(watch.after)
        return Generated(
            image=trajectory[:, -1].copy(),
            trajectory=trajectory,
            clean=self._decode(watch.clean),
            timestep=watch.timestep,
            activations=_stack(watch.layers),
            permuted=_stack(watch.permuted) if self.twin else None,
        )

    def _decode(self, steps: list[Tensor]) -> np.ndarray:
        """Latents of every step to uint8 (sample, step, y, x, rgb)."""
        vae = self.pipeline.vae
        latents = torch.stack(steps, dim=1)
        n, count = latents.shape[:2]
        flat = latents.flatten(0, 1) / vae.config.scaling_factor
        parts = [
            _to_images(vae.decode(flat[a : a + _DECODE_AT_ONCE]).sample)
            for a in range(0, len(flat), _DECODE_AT_ONCE)
        ]
        images = np.concatenate(parts)
        return images.reshape(n, count, *images.shape[1:])


def predicted_clean(
    scheduler: Any, output: Tensor, timestep: float | Tensor, sample: Tensor
) -> Tensor:
    """The clean latents that the denoiser's output implies at a step.

    With sample = a x0 + s noise: x0 = (sample - s eps) / a for noise prediction, and
    x0 = a sample - s v for velocity prediction (Salimans & Ho 2022, appendix D).  Schedulers that
    count in sigma hold sample / a, with sigma = s / a.

    Args:
        output: the (guided) model output, (n, channel, y, x).
        sample: latents before the step, same shape.
    """
    if hasattr(scheduler, "sigmas") and scheduler.config.get("_class_name", "").startswith(
        ("LMS", "Euler", "Heun")
    ):
        index = scheduler.step_index
        if index is None:
            index = scheduler.index_for_timestep(timestep)
        sigma = scheduler.sigmas[index].to(sample)
        a = 1 / (1 + sigma**2).sqrt()
        s, sample = sigma * a, sample * a
    else:
        alpha_bar = scheduler.alphas_cumprod[int(timestep)].to(sample)
        a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (sample - s * output) / a
    if kind == "v_prediction":
        return a * sample - s * output
    if kind == "sample":
        return output
    raise ValueError(f"unknown prediction type {kind!r}")


class _watched_step:  # noqa: N801  (a context manager used like a function)
    """Replaces ``scheduler.step`` by itself plus a look at what comes in and goes out."""

    def __init__(self, scheduler: Any, watch: _Watch) -> None:
        self.scheduler, self.watch = scheduler, watch

    def __enter__(self) -> None:
        inner = self.scheduler.step

        @functools.wraps(inner)  # pipelines look at its signature
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kw: Any) -> Any:
            self.watch.clean.append(
                predicted_clean(self.scheduler, model_output, timestep, sample).clone()
            )
            self.watch.timestep.append(float(timestep))
            result = inner(model_output, timestep, sample, *args, **kw)
            self.watch.after.append(result[0].clone())
            return result

        self.scheduler.step = step

    def __exit__(self, *_: object) -> None:
        del self.scheduler.step  # the class's own method shows again


def _conditional(args: tuple, kwargs: dict, halves: int) -> tuple[tuple, dict]:
    """The same call with the conditional part of every batched argument."""

    def half(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 0 and halves > 1:
            return value[len(value) // halves * (halves - 1) :]
        return value

    return tuple(half(a) for a in args), {k: half(v) for k, v in kwargs.items()}


def _stack(steps: list[dict[str, tuple[np.ndarray, np.ndarray]]]) -> Activations:
    layers = list(steps[0])
    return Activations(
        values={name: np.stack([step[name][0] for step in steps], axis=1) for name in layers},
        nonfinite={name: np.stack([step[name][1] for step in steps], axis=1) for name in layers},
    )


def _to_images(tensor: Tensor) -> np.ndarray:
    """float (n, rgb, y, x) in -1..1 to uint8 (n, y, x, rgb), as diffusers' image processor does."""
    unit = (tensor / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return (unit * 255).round().astype(np.uint8)
