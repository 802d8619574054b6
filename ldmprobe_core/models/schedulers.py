"""Samplers by name, noise levels of their steps, and the clean latents that an output implies.

Every scheduler keeps its latents as ``c x0 + d eps``, with clean latents x0, noise eps, and a level
(c, d) for every step: c = a and d = s of the diffusion itself (a^2 + s^2 = 1) for DDIM, PNDM, DPM++
and UniPC; c = 1 and d = s / a = sigma for LMS, Euler and Heun; c = 1 - sigma and d = sigma for flow
matching.  The level is read off the scheduler's own ``add_noise`` (flow matching: ``scale_noise``),
so that it is right for any scheduler and any choice of sigmas.

To add a sampler, add its class to `_CLASSES` here and its name to `Sampling.scheduler` in
``ldmprobe_core/study/sections.py``; `ldmprobe_core.models.timesteps` then rehearses it at planning
and refuses configs whose predicted clean latents are not those that the scheduler itself computes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import diffusers
import torch
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
from ldmprobe_core.models.architectures.base import default_config

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

_DEFAULTS: dict[str, dict[str, Any]] = {
    # A checkpoint for another scheduler says nothing of clipping, and DDIM clips by default: its
    # predicted clean latents would be cut at 1.
    "ddim": {"clip_sample": False},
    "pndm": {"skip_prk_steps": True},  # as Stable Diffusion was published: N + 1 calls
}
"""Defaults of keys that only one class knows, for models published with another scheduler."""

_TRAINED = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""Keys that describe how the model was trained, so that every sampler needs their values."""


class Level(NamedTuple):
    """Latents are ``clean * x0 + noise * eps`` at this step."""

    clean: float
    noise: float


def scheduler_class_name(name: str) -> str:
    """Name of the diffusers class of a sampler, such as ``DDIMScheduler`` of ``ddim``."""
    return _CLASSES[name].__name__


def new_scheduler(name: str, config: dict[str, Any]) -> Any:
    """Build a scheduler on the noise schedule that a model was trained with.

    Args:
        name: as a study names it.
        config: the model's own ``scheduler_config.json``.

    Raises:
        UserError: a flow-matching model is to be sampled as a diffusion model or the other way, or
            the scheduler cannot use a key of the config.
    """
    is_flow_model = is_flow(config)
    if is_flow_model != (name == "flow"):
        remedy = "flow" if is_flow_model else ", ".join(k for k in _CLASSES if k != "flow")
        training = "flow matching" if is_flow_model else "diffusion"
        raise UserError(
            f"sampling.scheduler is {name!r}, and this model is trained by {training}. Fix: use "
            f"{remedy}"
        )
    scheduler_class = _CLASSES[name]
    if config.get("_class_name") != scheduler_class.__name__:
        config = {**_DEFAULTS.get(name, {}), **_training_defaults(config), **config}
    _check_keys(name, scheduler_class, config)
    return scheduler_class.from_config(config)


def is_flow(config: dict[str, Any]) -> bool:
    """Whether a scheduler's config is that of a flow-matching model."""
    return str(config.get("_class_name", "")).startswith("FlowMatch")


def _training_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Defaults, in the model's own scheduler class, of the keys that describe its training.

    Raises:
        UserError: the class has no schedule of betas, so that other samplers do not fit the model.
    """
    class_name = str(config.get("_class_name", ""))
    published_class = getattr(diffusers, class_name, None)
    if published_class is None:
        return {}
    defaults = default_config(published_class)
    if "beta_start" not in defaults and not is_flow(config):
        raise UserError(
            f"model: the scheduler of scheduler_config.json cannot be replaced, since its class "
            f"has no schedule of betas ({class_name}). Fix: use a model with another scheduler"
        )
    return {key: defaults[key] for key in _TRAINED if key in defaults}


def _check_keys(name: str, scheduler_class: Any, config: dict[str, Any]) -> None:
    """Refuse values that the scheduler ignores or that make sampling irreproducible."""
    known = default_config(scheduler_class)
    for key in ("trained_betas", "rescale_betas_zero_snr"):
        if config.get(key) and key not in known:
            able = [n for n, c in _CLASSES.items() if key in default_config(c)]
            raise UserError(
                f"sampling.scheduler: {name} has no {key}, which the model's scheduler_config.json "
                f"sets ({config[key]!r:.40}). Fix: use {', '.join(able)}"
            )
    if "skip_prk_steps" in known and not config.get("skip_prk_steps", known["skip_prk_steps"]):
        raise UserError(
            f"sampling.scheduler: {name} with Runge-Kutta steps takes several calls for one step "
            "(skip_prk_steps false in the model's scheduler_config.json). Fix: set it to true, or "
            "choose another sampling.scheduler"
        )
    if "stochastic_sampling" in known and config.get("stochastic_sampling"):
        raise UserError(
            f"sampling.scheduler: {name} would draw noise that no seed decides "
            "(stochastic_sampling true in the model's scheduler_config.json). Fix: set it to false"
        )


def level_of(scheduler: Any, timestep: float | Tensor) -> Level:
    """Noise level of a step of a scheduler whose timesteps are set.

    Args:
        timestep: the scheduler's number of the step; one of ``scheduler.timesteps``.
    """
    add_noise = getattr(scheduler, "scale_noise", None)
    timesteps = torch.as_tensor(timestep).reshape(1).cpu()
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    if add_noise is not None:
        clean = add_noise(one, timesteps, zero)
        noise = add_noise(zero, timesteps, one)
    else:
        clean = scheduler.add_noise(one, zero, timesteps)
        noise = scheduler.add_noise(zero, one, timesteps)
    return Level(float(clean), float(noise))


def predicted_clean(
    scheduler: Any, output: Tensor, timestep: float | Tensor, sample: Tensor
) -> Tensor:
    """Compute the clean latents that the denoiser's output implies at a step.

    With a x0 + s eps on the diffusion's own scale: x0 = (sample - s eps) / a for noise prediction,
    and x0 = a sample - s v for velocity prediction (Salimans & Ho 2022, appendix D).  Flow matching
    predicts eps - x0, so that x0 = sample - sigma output (Lipman et al. 2023).  If the scheduler
    clips or thresholds x0 before it uses it, the result is clipped or thresholded alike.

    Args:
        output: the (guided) model output, (n, channel, y, x), or (n, token, channel) for Flux.
        sample: latents before the step, same shape.

    Returns:
        float32, same shape.
    """
    level = level_of(scheduler, timestep)
    clean = _implied_clean(scheduler, level, output.float(), sample.float())
    known = default_config(type(scheduler))
    if "thresholding" in known and scheduler.config.thresholding:
        # Imagen's dynamic thresholding (Saharia et al. 2022), by the scheduler's own method.
        return scheduler._threshold_sample(clean)
    if "clip_sample" in known and scheduler.config.clip_sample:
        bound = scheduler.config.clip_sample_range
        return clean.clamp(-bound, bound)
    return clean


def _implied_clean(scheduler: Any, level: Level, output: Tensor, sample: Tensor) -> Tensor:
    clean, noise = level
    if hasattr(scheduler, "scale_noise"):
        return sample - noise * output
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (sample - noise * output) / clean
    if kind == "v_prediction":
        scale = (clean**2 + noise**2) ** 0.5  # from the scheduler's scale to the diffusion's own
        return clean / scale * sample / scale - noise / scale * output
    if kind in ("sample", "original_sample"):
        return output
    if kind == "flow_prediction":
        return sample - noise * output
    raise ValueError(f"unknown prediction type {kind!r}")


def noised(scheduler: Any, clean: Tensor, noise: Tensor, index: int) -> Tensor:
    """Mix clean latents with noise at the level of one of the scheduler's steps.

    Args:
        clean, noise: (n, ...), same shape.
        index: of the step, from 0.
    """
    level = level_of(scheduler, scheduler.timesteps[index])
    return (level.clean * clean + level.noise * noise).to(clean.dtype)
