"""Samplers by name, and what a step's latents and the denoiser's output say of the clean latents.

Every scheduler keeps its latents as ``c x0 + d eps``, with clean latents x0, noise eps, and a level
(c, d) for every step: c = a and d = s of the diffusion itself (a^2 + s^2 = 1) for DDIM, PNDM, DPM++
and UniPC; c = 1 and d = s / a = sigma for LMS, Euler and Heun; c = 1 - sigma and d = sigma for flow
matching.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ldmprobe_core.errors import UserError

_CLASSES: dict[str, Any] = {
    "lms": LMSDiscreteScheduler,
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "flow": FlowMatchEulerDiscreteScheduler,
}
_IN_SIGMA = (LMSDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler)

_OURS: dict[str, dict[str, Any]] = {
    # A checkpoint for another scheduler says nothing of clipping, and DDIM clips by default: its
    # predicted clean latents would be cut at 1.
    "ddim": {"clip_sample": False},
    "pndm": {"skip_prk_steps": True},  # as Stable Diffusion was published: N + 1 calls
}


class Level(NamedTuple):
    """Latents are ``clean * x0 + noise * eps`` at this step."""

    clean: float
    noise: float


def new_scheduler(name: str, config: dict[str, Any]) -> Any:
    """A scheduler on the noise schedule that a model was trained with.

    Args:
        name: as a study names it.
        config: the model's own ``scheduler_config.json``.

    Raises:
        UserError: a flow-matching model is to be sampled as a diffusion model, or the other way.
    """
    trained = is_flow(config)
    if trained != (name == "flow"):
        remedy = "flow" if trained else ", ".join(k for k in _CLASSES if k != "flow")
        what = "flow matching" if trained else "diffusion"
        raise UserError(
            f"sampling.scheduler is {name!r}, and this model is trained by {what}: use {remedy}"
        )
    return _CLASSES[name].from_config({**_OURS.get(name, {}), **config})


def is_flow(config: dict[str, Any]) -> bool:
    """A scheduler's config is that of a flow-matching model."""
    return str(config.get("_class_name", "")).startswith("FlowMatch")


def level_of(scheduler: Any, timestep: float | Tensor, index: int | None = None) -> Level:
    """Level of a step of a scheduler whose timesteps are set.

    Args:
        timestep: the scheduler's number of the step.
        index: position among the timesteps; None takes the one the scheduler stands at.
    """
    if isinstance(scheduler, (*_IN_SIGMA, FlowMatchEulerDiscreteScheduler)):
        if index is None:
            index = scheduler.step_index
        if index is None:
            index = scheduler.index_for_timestep(timestep)
        sigma = float(scheduler.sigmas[index])
        flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
        return Level(1 - sigma if flow else 1.0, sigma)
    alpha_bar = float(scheduler.alphas_cumprod[int(timestep)])
    return Level(alpha_bar**0.5, (1 - alpha_bar) ** 0.5)


def predicted_clean(
    scheduler: Any, output: Tensor, timestep: float | Tensor, sample: Tensor
) -> Tensor:
    """The clean latents that the denoiser's output implies at a step.

    With a x0 + s eps on the diffusion's own scale: x0 = (sample - s eps) / a for noise prediction,
    and x0 = a sample - s v for velocity prediction (Salimans & Ho 2022, appendix D).  Flow matching
    predicts eps - x0, so that x0 = sample - sigma output (Lipman et al. 2023).

    Args:
        output: the (guided) model output, (n, channel, y, x).
        sample: latents before the step, same shape.
    """
    clean, noise = level_of(scheduler, timestep)
    output, sample = output.float(), sample.float()
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return sample - noise * output
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (sample - noise * output) / clean
    if kind == "v_prediction":
        scale = (clean**2 + noise**2) ** 0.5  # from the scheduler's scale to the diffusion's own
        a, s = clean / scale, noise / scale
        return a * sample / scale - s * output
    if kind == "sample":
        return output
    raise ValueError(f"unknown prediction type {kind!r}")


def noised(scheduler: Any, clean: Tensor, noise: Tensor, index: int) -> Tensor:
    """Clean latents with noise at the level of one of the scheduler's steps.

    Args:
        clean, noise: (n, ...), same shape.
        index: of the step, from 0.
    """
    level = level_of(scheduler, scheduler.timesteps[index], index)
    return (level.clean * clean + level.noise * noise).to(clean.dtype)
