"""Computation of a study's timesteps, and a test run of its scheduler on random latents.

The test run steps through the schedule with small random latents and random model outputs.  It
finds scheduler configs that would fail in the middle of a batch, and configs for which
`predicted_clean` disagrees with the clean latents that the scheduler itself computes.
"""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import Architecture, default_config
from ldmprobe_core.models.schedulers import (
    level_of,
    new_scheduler,
    own_scheduler,
    predicted_clean,
    scheduler_class_name,
)
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import PIPELINE

_TOLERANCE = 1e-4
"""Largest accepted difference between two computations of the predicted clean latents.

It is relative to the largest absolute value of the latents, or to 1 if that is larger.
"""

_MOST_REHEARSED = 50
"""Largest number of sampler steps in the test run of a scheduler on random latents.

More would take time and find little, since failures depend on the config rather than on the number
of steps.
"""

_MOST_TRAINED = 100_000
"""Largest ``num_train_timesteps``; schedulers list that many noise levels in memory."""


def scheduler_of(architecture: Architecture, name: str) -> Any:
    """Build a scheduler for a model, from the config that the model's pipeline would use.

    Args:
        architecture: architecture of the model, with its scheduler config.
        name: name of the scheduler in a study, such as ``ddim``; ``pipeline`` means a copy of the
            scheduler that a pipeline object has.

    Raises:
        UserError: the scheduler does not fit the model.
    """
    if name == PIPELINE:
        return own_scheduler(architecture.scheduler)
    return new_scheduler(name, architecture.scheduler_config(scheduler_class_name(name)))


def timesteps(architecture: Architecture, study: Study) -> list[float]:
    """Compute the scheduler's timestep of every sampling step, in sampling order.

    Raises:
        UserError: the scheduler cannot provide this number of steps; or its timesteps repeat,
            increase, are not finite or lie outside the range of the training; or its predicted
            clean latents cannot be computed.  If a single key of ``scheduler_config.json`` is the
            cause, the message names it.
    """
    name, steps = study.sampling.scheduler, study.sampling.steps
    trained = architecture.scheduler.get("num_train_timesteps", 1000)
    if type(trained) is not int or not 1 <= trained <= _MOST_TRAINED:
        raise UserError(
            f"model: num_train_timesteps in scheduler_config.json of {architecture.source} is "
            f"{trained!r:.40}. Fix: give a whole number from 1 to {_MOST_TRAINED}"
        )
    values, problem = _attempt(architecture, name, steps)
    if problem is None:
        return values
    fewer = max(1, min(steps, trained) // 2)
    helps = fewer < steps and _attempt(architecture, name, fewer)[1] is None
    field = "sampling.steps" if helps else "sampling.scheduler"
    remedy = f"lower sampling.steps, as to {fewer}, or " if helps else ""
    raise UserError(
        f"{field}: {problem} (scheduler {name}, {steps} steps"
        f"{_cause(architecture, name, steps)}). Fix: {remedy}choose another sampling.scheduler, or "
        "correct the model's scheduler_config.json"
    )


def log_snr(architecture: Architecture, study: Study) -> list[float | None]:
    """Compute the log signal-to-noise ratio of the latents before every sampling step.

    Steps of different schedulers can be compared by it.  The ratio is of variances, 2 ln(a / s) for
    latents a x0 + s eps.

    Returns:
        natural logarithms in sampling order; None for latents without signal or without noise.
    """
    scheduler = scheduler_of(architecture, study.sampling.scheduler)
    architecture.set_steps(scheduler, study.sampling.steps)
    levels = [level_of(scheduler, timestep) for timestep in scheduler.timesteps]
    return [
        2 * math.log(level.clean / level.noise) if level.clean > 0 and level.noise > 0 else None
        for level in levels
    ]


def _attempt(architecture: Architecture, name: str, steps: int) -> tuple[list[float], str | None]:
    """Compute the timesteps of a scheduler, and test its steps on random latents.

    Returns:
        the timesteps, and a description of what is wrong with the schedule; None if it is usable.

    Raises:
        UserError: the scheduler does not fit the model.
    """
    trained = architecture.scheduler.get("num_train_timesteps", 1000)
    # This check precedes the construction of the scheduler, because some scheduler classes allocate
    # memory in proportion to the number of steps.
    if isinstance(trained, int) and steps > trained > 0:
        return [], f"the schedule has {trained} steps"
    try:
        scheduler = scheduler_of(architecture, name)
        architecture.set_steps(scheduler, steps)
        values = [float(t) for t in scheduler.timesteps]
        trained = int(scheduler.config.get("num_train_timesteps", 1000))
        problem = _timestep_problem(values, steps, trained) or _noise_problem(scheduler, values)
        if problem is None:
            architecture.set_steps(scheduler, min(steps, _MOST_REHEARSED))
            # Pipelines with this method pass their generators on to the scheduler.
            seeds = hasattr(architecture.diffusers_class, "prepare_extra_step_kwargs")
            problem = _rehearsal_problem(scheduler, int(architecture.vae["latent_channels"]), seeds)
    except UserError:
        raise
    # Scheduler classes raise exceptions of many types for configs that they cannot use, so all of
    # them are reported as a problem of the schedule.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        return [], f"the scheduler cannot make these steps ({type(error).__name__}: {reason:.100})"
    return values, problem


def _cause(architecture: Architecture, name: str, steps: int) -> str:
    """Find a key of the scheduler's config that makes the schedule unusable.

    Returns:
        text for the error message, with the first key after whose removal the schedule is usable;
        empty if there is no such key.
    """
    config = architecture.scheduler
    try:
        for key in config:
            if key.startswith("_") or key == "num_train_timesteps":
                continue
            architecture.scheduler = {k: v for k, v in config.items() if k != key}
            try:
                usable = _attempt(architecture, name, steps)[1] is None
            except UserError:
                usable = False
            if usable:
                return f", {key} {config[key]!r:.40} in scheduler_config.json"
    finally:
        architecture.scheduler = config
    return ""


def _timestep_problem(values: list[float], steps: int, trained: int) -> str | None:
    """Describe what is wrong with a list of timesteps; None if it is usable.

    A timestep that occurs twice is accepted, because PNDM repeats one timestep and Heun repeats all
    but the last.

    Args:
        values: timesteps in sampling order.
        steps: required number of distinct timesteps.
        trained: number of timesteps in the model's training.
    """
    if not all(math.isfinite(value) for value in values):
        return "timesteps are not finite"
    if len(set(values)) != steps:
        return f"{len(set(values))} of {steps} timesteps are distinct"
    if any(later > earlier for earlier, later in itertools.pairwise(values)):
        return "timesteps do not decrease"
    if min(values) < 0 or max(values) > trained:
        return f"timesteps {min(values):g} to {max(values):g} exceed the schedule 0 to {trained}"
    return None


def _noise_problem(scheduler: Any, values: list[float]) -> str | None:
    """Describe what is wrong with a scheduler's noise levels; None if they are usable."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and not bool(torch.as_tensor(sigmas).isfinite().all()):
        return "noise levels are not finite"
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        return None
    if not bool(alphas.isfinite().all()):
        return "noise levels are not finite"
    # Some schedulers use timesteps as indices into `alphas`, so a timestep beyond its end would
    # raise an IndexError during sampling.
    if max(values) > len(alphas) - 1:
        return f"timesteps reach {max(values):g}, and the schedule ends at {len(alphas) - 1}"
    used = alphas[torch.tensor(values).round().long().clamp(0, len(alphas) - 1)]
    if scheduler.config.get("prediction_type") == "epsilon" and bool((used <= 0).any()):
        return "a step has no signal at all, so no clean image follows from the predicted noise"
    return None


def _rehearsal_problem(scheduler: Any, channels: int, seeds: bool) -> str | None:
    """Test a scheduler's steps on random latents, and describe a failure; None if all succeed.

    A step must leave PyTorch's global generator alone.  Otherwise images would not be those of
    their seeds, and the two images that an intervention compares would differ by noise.

    Args:
        scheduler: scheduler whose timesteps are set.  The test run changes its state, so it cannot
            be used for sampling afterwards.
        channels: number of channels of the latents.
        seeds: whether the pipeline passes a random generator to a scheduler that accepts one.
    """
    generator = torch.Generator().manual_seed(0)
    noise_source = {}
    if seeds and "generator" in inspect.signature(scheduler.step).parameters:
        noise_source["generator"] = generator
    converted = _record_conversions(scheduler)
    latents = torch.randn(1, channels, 2, 2, generator=generator)
    latents = latents * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for timestep in scheduler.timesteps:
        output = torch.randn(latents.shape, generator=generator)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(latents, timestep)
        level = level_of(scheduler, timestep)
        clean = predicted_clean(scheduler, output, timestep, latents)
        with torch.random.fork_rng(devices=[]):
            before = torch.random.get_rng_state()
            result = scheduler.step(output, timestep, latents, **noise_source)
            if not torch.equal(torch.random.get_rng_state(), before):
                return "a step draws noise without a seed, since the pipeline passes it none"
        # LCM returns its predicted clean latents as `denoised`, and other schedulers as
        # `pred_original_sample`.
        expected = getattr(result, "denoised", getattr(result, "pred_original_sample", None))
        if expected is None and converted:
            expected = converted.pop()
            if not _converts_to_clean(scheduler):
                expected = (latents - level.noise * expected) / level.clean
        if expected is not None and not _agree(clean, expected):
            return "the predicted clean image is not the one that the scheduler computes"
        latents = result.prev_sample
    return None if bool(latents.isfinite().all()) else "latents do not stay finite"


def _record_conversions(scheduler: Any) -> list[Tensor]:
    """Wrap a multistep solver's ``convert_model_output`` so that its results are recorded.

    Returns:
        a list to which each step appends the converted model output: predicted clean latents or
        predicted noise.  It stays empty for schedulers without this method.
    """
    converted: list[Tensor] = []
    convert = getattr(scheduler, "convert_model_output", None)
    if convert is not None:

        def record(*args: Any, **arguments: Any) -> Tensor:
            converted.append(convert(*args, **arguments))
            return converted[-1]

        scheduler.convert_model_output = record
    return converted


def _converts_to_clean(scheduler: Any) -> bool:
    """Return whether a multistep solver converts model outputs to clean latents, not to noise."""
    # The config key that chooses between clean latents and noise differs by class: UniPC has
    # `predict_x0`, DPM-Solver has `algorithm_type`.
    if "predict_x0" in default_config(type(scheduler)):
        return bool(scheduler.config.predict_x0)
    return str(scheduler.config.get("algorithm_type")).endswith("++")


def _agree(clean: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors have the same shape and are equal within `_TOLERANCE`."""
    bound = _TOLERANCE * max(1.0, float(expected.abs().max()))
    return clean.shape == expected.shape and bool(((clean - expected).abs() <= bound).all())
