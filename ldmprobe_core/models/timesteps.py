"""Timesteps of a study, and a rehearsal of its scheduler, both before anything is generated.

The rehearsal steps through the whole schedule with random latents of a few values and random model
outputs.  It finds configs that fail in the middle of a batch, and configs whose predicted clean
latents differ from those that the scheduler itself computes.
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
    predicted_clean,
    scheduler_class_name,
)
from ldmprobe_core.study.schema import Study

_TOLERANCE = 1e-4
"""Largest difference of predicted clean latents, as a share of their largest value (at least 1)."""

_MOST_REHEARSED = 50
"""Most steps of a rehearsal: failures depend on the config, hardly on the number of steps."""


def scheduler_of(architecture: Architecture, name: str) -> Any:
    """Build the scheduler of a name for a model, from the config that its pipeline would use.

    Raises:
        UserError: the scheduler does not fit the model.
    """
    return new_scheduler(name, architecture.scheduler_config(scheduler_class_name(name)))


def timesteps(architecture: Architecture, study: Study) -> list[float]:
    """Timesteps of all steps, in sampling order.

    Raises:
        UserError: the scheduler cannot make this many steps, or makes steps that no model can use:
            repeated, rising, outside its training schedule, or not finite; or its predicted clean
            latents are unknown.  The key of ``scheduler_config.json`` that causes it is named.
    """
    name, steps = study.sampling.scheduler, study.sampling.steps
    values, problem = _attempt(architecture, name, steps)
    if problem is None:
        return values
    trained = architecture.scheduler.get("num_train_timesteps", 1000)
    raise UserError(
        f"sampling.steps: {problem} (scheduler {name}, {steps} steps"
        f"{_cause(architecture, name, steps)}). Fix: ask for fewer than {trained} steps, choose "
        "another sampling.scheduler, or correct the model's scheduler_config.json"
    )


def _attempt(architecture: Architecture, name: str, steps: int) -> tuple[list[float], str | None]:
    """Timesteps, and a defect of the schedule in words; None if it is usable."""
    trained = architecture.scheduler.get("num_train_timesteps", 1000)
    if isinstance(trained, int) and steps > trained > 0:  # else some classes would allocate them
        return [], f"the schedule has {trained} steps"
    try:
        scheduler = scheduler_of(architecture, name)
        architecture.set_steps(scheduler, steps)
        values = [float(t) for t in scheduler.timesteps]
        trained = int(scheduler.config.get("num_train_timesteps", 1000))
        problem = _timestep_problem(values, steps, trained) or _noise_problem(scheduler, values)
        if problem is None:
            architecture.set_steps(scheduler, min(steps, _MOST_REHEARSED))
            problem = _rehearsal_problem(scheduler, int(architecture.vae["latent_channels"]))
    except UserError:
        raise
    except Exception as error:  # each scheduler has its own way to fail on a config
        reason = str(error).strip().partition("\n")[0]
        return [], f"the scheduler cannot make these steps ({type(error).__name__}: {reason:.100})"
    return values, problem


def _cause(architecture: Architecture, name: str, steps: int) -> str:
    """Name the first key of the scheduler's config without which the schedule is usable."""
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
    """Defect of a list of timesteps in words; None if it is usable.

    Some schedulers visit a timestep twice (PNDM one, Heun each but the last), which is no defect.
    """
    if not all(math.isfinite(value) for value in values):
        return "timesteps are not finite"
    if len(set(values)) != steps:
        return f"{len(set(values))} of {steps} timesteps are distinct"
    if any(later > earlier for earlier, later in itertools.pairwise(values)):
        return "timesteps do not fall"
    if min(values) < 0 or max(values) > trained:
        return f"timesteps {min(values):g} to {max(values):g} leave the schedule 0 to {trained}"
    return None


def _noise_problem(scheduler: Any, values: list[float]) -> str | None:
    """Defect of a schedule's noise levels in words; None if they are usable."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and not bool(torch.as_tensor(sigmas).isfinite().all()):
        return "noise levels are not finite"
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        return None
    if not bool(alphas.isfinite().all()):
        return "noise levels are not finite"
    if max(values) > len(alphas) - 1:  # some schedulers index with it, beyond the end
        return f"timesteps reach {max(values):g}, and the schedule ends at {len(alphas) - 1}"
    used = alphas[torch.tensor(values).round().long().clamp(0, len(alphas) - 1)]
    if scheduler.config.get("prediction_type") == "epsilon" and bool((used <= 0).any()):
        return "a step has no signal at all, from which predicted noise gives no image"
    return None


def _rehearsal_problem(scheduler: Any, channels: int) -> str | None:
    """Defect that shows while a scheduler steps through its schedule, in words; None without one.

    Args:
        scheduler: scheduler whose timesteps are set; it cannot be used afterwards.
        channels: channels of the latents.
    """
    generator = torch.Generator().manual_seed(0)
    noise_source = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
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
        result = scheduler.step(output, timestep, latents, **noise_source)
        expected = getattr(result, "pred_original_sample", None)
        if expected is None and converted:
            expected = converted.pop()
            if not _converts_to_clean(scheduler):
                expected = (latents - level.noise * expected) / level.clean
        if expected is not None and not _agree(clean, expected):
            return "the predicted clean image is not the one that the scheduler computes"
        latents = result.prev_sample
    return None if bool(latents.isfinite().all()) else "latents do not stay finite"


def _record_conversions(scheduler: Any) -> list[Tensor]:
    """List that receives the converted model outputs of a multistep solver, one a step."""
    converted: list[Tensor] = []
    convert = getattr(scheduler, "convert_model_output", None)
    if convert is not None:

        def record(*args: Any, **arguments: Any) -> Tensor:
            converted.append(convert(*args, **arguments))
            return converted[-1]

        scheduler.convert_model_output = record
    return converted


def _converts_to_clean(scheduler: Any) -> bool:
    """Whether a multistep solver works on clean latents; otherwise it works on noise."""
    if "predict_x0" in default_config(type(scheduler)):  # UniPC
        return bool(scheduler.config.predict_x0)
    return str(scheduler.config.get("algorithm_type")).endswith("++")


def _agree(clean: Tensor, expected: Tensor) -> bool:
    bound = _TOLERANCE * max(1.0, float(expected.abs().max()))
    return clean.shape == expected.shape and bool(((clean - expected).abs() <= bound).all())
