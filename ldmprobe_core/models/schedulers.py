"""Schedulers by name, the noise levels of their steps, and predicted clean latents.

The latents of every scheduler have the form ``c x0 + d eps`` with clean latents x0 and noise eps.
The coefficients (c, d) of a step depend on the scheduler:

- DDIM, PNDM, DPM++, UniPC, LCM and TCD: c = a and d = s, the signal and noise of the diffusion
  process, with a^2 + s^2 = 1;
- LMS, Euler, its ancestral variant and Heun: c = 1 and d = sigma = s / a;
- flow matching: c = 1 - sigma and d = sigma.

This module obtains them by calls of the scheduler's method ``add_noise`` (``scale_noise`` for flow
matching), so that they are correct for every scheduler and every choice of sigmas.

To add a scheduler, add its class to `_CLASSES` here and its name to `Sampling.scheduler` in
``ldmprobe_core/study/sections.py``.  `ldmprobe_core.models.timesteps` then tests it whenever a
study is planned, and refuses configs for which `predicted_clean` disagrees with the scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
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
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    # DDIM clips predicted clean latents to -1..1 unless `clip_sample` is False, but latents exceed
    # this range.  A config that was written for another scheduler lacks this key.
    "ddim": {"clip_sample": False},
    # By default, PNDM begins with Runge-Kutta steps, which need several denoiser calls per step.
    # The original sampler of Stable Diffusion skips the Runge-Kutta steps.
    "pndm": {"skip_prk_steps": True},
}
"""Config values for each scheduler, if the model was published with a scheduler of another class.

They apply to keys that the model's own scheduler config leaves out.
"""

_TRAINED = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""Config keys that describe the model's training; their values apply to any scheduler for it."""


class Level(NamedTuple):
    """Coefficients of the clean latents x0 and the noise eps in the noised latents of one step.

    The noised latents are ``clean * x0 + noise * eps``.
    """

    clean: float
    noise: float


def scheduler_class_name(name: str) -> str:
    """Return the name of the diffusers class for a study's ``sampling.scheduler``.

    For example, it is ``DDIMScheduler`` for ``ddim``.
    """
    return _CLASSES[name].__name__


def new_scheduler(name: str, config: dict[str, Any]) -> Any:
    """Build a scheduler that uses the noise schedule of a model's training.

    Args:
        name: name of the scheduler in a study, such as ``ddim``.
        config: content of the model's ``scheduler_config.json``.

    Returns:
        a diffusers scheduler whose timesteps are not set yet.

    Raises:
        UserError: the scheduler is for flow matching and the model is not, or the reverse; or the
            scheduler does not support the value of a key in the config.
    """
    is_flow_model = is_flow(config)
    if is_flow_model != (name == "flow"):
        remedy = "flow" if is_flow_model else ", ".join(k for k in _CLASSES if k != "flow")
        training = "flow matching" if is_flow_model else "diffusion"
        raise UserError(
            f"sampling.scheduler is {name!r}, but the model was trained with {training}. Fix: set "
            f"sampling.scheduler to a scheduler for {training} ({remedy})"
        )
    scheduler_class = _CLASSES[name]
    if config.get("_class_name") != scheduler_class.__name__:
        config = {**_DEFAULTS.get(name, {}), **_training_defaults(config), **config}
    _check_keys(name, scheduler_class, config)
    return scheduler_class.from_config(config)


def own_scheduler(config: dict[str, Any]) -> Any:
    """Build a copy of the scheduler of a pipeline object from the scheduler's config.

    Raises:
        UserError: the scheduler's class is not one of diffusers, or draws noise without a seed.
    """
    class_name = str(config.get("_class_name"))
    scheduler_class = getattr(diffusers, class_name, None)
    if scheduler_class is None:
        raise UserError(
            f"pipeline: its scheduler is a {class_name:.60}, which diffusers does not have. Fix: "
            "set pipe.scheduler to a scheduler of diffusers"
        )
    _check_keys(class_name, scheduler_class, config)
    return scheduler_class.from_config(config)


def is_flow(config: dict[str, Any]) -> bool:
    """Return whether a scheduler config belongs to a flow-matching model."""
    return str(config.get("_class_name", "")).startswith("FlowMatch")


def _training_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return the default noise-schedule settings of the scheduler class in a model's config.

    Raises:
        UserError: the class has no schedule of betas, so that no other scheduler fits the model.
    """
    class_name = str(config.get("_class_name", ""))
    published_class = getattr(diffusers, class_name, None)
    if published_class is None:
        return {}
    defaults = default_config(published_class)
    if "beta_start" not in defaults and not is_flow(config):
        raise UserError(
            f"model: the scheduler of scheduler_config.json ({class_name}) cannot be replaced by "
            "another, since its class has no schedule of betas. Fix: use a model with another "
            "scheduler"
        )
    return {key: defaults[key] for key in _TRAINED if key in defaults}


def _check_keys(name: str, scheduler_class: Any, config: dict[str, Any]) -> None:
    """Check that a scheduler supports all config values and draws noise only with a seed.

    Raises:
        UserError: the config has such a value.
    """
    known = default_config(scheduler_class)
    for key in ("trained_betas", "rescale_betas_zero_snr"):
        if config.get(key) and key not in known:
            able = [n for n, c in _CLASSES.items() if key in default_config(c)]
            raise UserError(
                f"sampling.scheduler: {name} does not support {key}, which the model's "
                f"scheduler_config.json sets ({config[key]!r:.40}). Fix: set sampling.scheduler to "
                f"one of {', '.join(able)}"
            )
    if "skip_prk_steps" in known and not config.get("skip_prk_steps", known["skip_prk_steps"]):
        raise UserError(
            f"sampling.scheduler: {name} with Runge-Kutta steps calls the denoiser several times "
            "per step (skip_prk_steps is false in the model's scheduler_config.json). Fix: set "
            "skip_prk_steps to true, or choose another sampling.scheduler"
        )
    if "stochastic_sampling" in known and config.get("stochastic_sampling"):
        raise UserError(
            f"sampling.scheduler: {name} would draw noise without a seed (stochastic_sampling is "
            "true in the model's scheduler_config.json). Fix: set stochastic_sampling to false"
        )


def level_of(scheduler: Any, timestep: float | Tensor) -> Level:
    """Compute the coefficients of signal and noise in the latents before a scheduler step.

    Args:
        scheduler: diffusers scheduler whose timesteps are set.
        timestep: one of ``scheduler.timesteps``.
    """
    add_noise = getattr(scheduler, "scale_noise", None)
    timesteps = torch.as_tensor(timestep).reshape(1).cpu()
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with _position_unset(scheduler):
        if add_noise is not None:
            clean = add_noise(one, timesteps, zero)
            noise = add_noise(zero, timesteps, one)
        else:
            clean = scheduler.add_noise(one, zero, timesteps)
            noise = scheduler.add_noise(zero, one, timesteps)
    return Level(float(clean), float(noise))


@contextmanager
def _position_unset(scheduler: Any) -> Iterator[None]:
    """Context manager in which a scheduler finds noise levels by timestep.

    Many schedulers take the level of their own position instead, if it is set, and the one with
    Heun's method for flow matching sets it where it adds noise.
    """
    names = [name for name in ("_step_index", "_begin_index") if hasattr(scheduler, name)]
    position = {name: getattr(scheduler, name) for name in names}
    try:
        for name in names:
            setattr(scheduler, name, None)
        yield
    finally:
        for name, value in position.items():
            setattr(scheduler, name, value)


def predicted_clean(
    scheduler: Any, output: Tensor, timestep: float | Tensor, sample: Tensor
) -> Tensor:
    """Compute the clean latents x0 that the denoiser's output implies at a step.

    For latents ``sample = a x0 + s eps`` with a^2 + s^2 = 1:

    - noise prediction (the output is eps): x0 = (sample - s eps) / a;
    - velocity prediction (the output is v): x0 = a sample - s v (Salimans & Ho 2022, appendix D);
    - flow matching (the output is eps - x0): x0 = sample - sigma output (Lipman et al. 2023).

    If the scheduler clips or thresholds x0, the result is clipped or thresholded in the same way.
    LCM mixes x0 with the latents (Luo et al. 2023, equation 9), and the mixture is returned.

    Args:
        scheduler: diffusers scheduler whose timesteps are set.
        output: output of the denoiser after guidance, (n, channel, y, x), or (n, token, channel)
            for Flux.
        timestep: one of ``scheduler.timesteps``.
        sample: latents before the step, in the shape of ``output``.

    Returns:
        float32 clean latents in the shape of ``output``.

    Raises:
        ValueError: the scheduler's prediction type is unknown.
    """
    level = level_of(scheduler, timestep)
    clean = _implied_clean(scheduler, level, output.float(), sample.float())
    clean = _limited(scheduler, clean)
    if isinstance(scheduler, LCMScheduler):
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        return out * clean + skip * sample.float()
    return clean


def _limited(scheduler: Any, clean: Tensor) -> Tensor:
    """Clip or threshold clean latents, if the scheduler's config asks for it."""
    known = default_config(type(scheduler))
    if "thresholding" in known and scheduler.config.thresholding:
        # Dynamic thresholding (Imagen, Saharia et al. 2022) is computed by the scheduler's private
        # method, so that the result equals that of the scheduler's own step.
        return scheduler._threshold_sample(clean)
    if "clip_sample" in known and scheduler.config.clip_sample:
        bound = scheduler.config.clip_sample_range
        return clean.clamp(-bound, bound)
    return clean


def _implied_clean(scheduler: Any, level: Level, output: Tensor, sample: Tensor) -> Tensor:
    """Compute the clean latents that a denoiser output implies, without clipping them."""
    clean, noise = level
    if hasattr(scheduler, "scale_noise"):
        return sample - noise * output
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (sample - noise * output) / clean
    if kind == "v_prediction":
        # The velocity formula holds for coefficients with a^2 + s^2 = 1.  Euler, LMS and Heun have
        # other coefficients, so latents and coefficients are divided by (a^2 + s^2)^0.5.
        scale = (clean**2 + noise**2) ** 0.5
        return clean / scale * sample / scale - noise / scale * output
    if kind in ("sample", "original_sample"):
        return output
    if kind == "flow_prediction":
        return sample - noise * output
    raise ValueError(
        f"the scheduler's prediction_type is unknown ({kind!r}). Fix: correct the "
        "key in scheduler_config.json"
    )


def noised(scheduler: Any, clean: Tensor, noise: Tensor, index: int) -> Tensor:
    """Add noise to clean latents, at the noise level before one of the scheduler's steps.

    Args:
        scheduler: diffusers scheduler whose timesteps are set.
        clean, noise: tensors (n, ...) of the same shape; the noise has unit variance.
        index: index of the step (from 0).

    Returns:
        noised latents, in the shape and dtype of ``clean``.
    """
    level = level_of(scheduler, scheduler.timesteps[index])
    return (level.clean * clean + level.noise * noise).to(clean.dtype)
