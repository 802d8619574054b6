"""Observation of a scheduler's steps: latents before and after, and the predicted clean image."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ldmprobe_core.models.architectures.base import Guidance
from ldmprobe_core.models.schedulers import predicted_clean


@dataclass
class StepRecorder:
    """Latents and timesteps of one batch, one entry a step.

    Attributes:
        after: latents after each step, in the pipeline's layout.
        clean: predicted clean latents of each step, float32, same layout; empty if they are not
            asked for.
        timestep: the scheduler's number of each step.
        calls: number of denoiser calls since the last step.
    """

    after: list[Tensor] = field(default_factory=list)
    clean: list[Tensor] = field(default_factory=list)
    timestep: list[float] = field(default_factory=list)
    calls: int = 0


class SchedulerTap:
    """Context manager that records a scheduler's steps, and can replace their results.

    Pipelines have no hook with a step's inputs, so inside the block the instance's ``step`` shadows
    the method of its class.

    Args:
        scheduler: of the pipeline.
        steps: receives the latents and timesteps.
        guidance: declared calls of the denoiser in a step.
        before: called with each step, from 0, and the latents that it begins from.
        predicts_clean: whether to record the predicted clean latents.
        replace: number of finished steps to the latents that the pipeline continues with, in place
            of the step's result; None leaves the result.

    Raises:
        RuntimeError: at a step, if the denoiser was not called as often as declared.
    """

    def __init__(
        self,
        scheduler: Any,
        steps: StepRecorder,
        guidance: Guidance,
        before: Callable[[int, Tensor], None],
        predicts_clean: bool,
        replace: Callable[[int], Tensor] | None,
    ) -> None:
        self.scheduler, self.steps, self.before = scheduler, steps, before
        self.guidance, self.predicts_clean, self.replace = guidance, predicts_clean, replace

    def __enter__(self) -> None:
        inner, steps = self.scheduler.step, self.steps

        @functools.wraps(inner)  # pipelines look at its signature
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kw: Any) -> Any:
            if steps.calls != self.guidance.calls_per_step:
                raise RuntimeError(
                    f"the denoiser was called {steps.calls} times in one step, not "
                    f"{self.guidance.calls_per_step}: the pipeline's guidance is not what was "
                    "declared, or the model was compiled, which bypasses hooks"
                )
            steps.calls = 0
            self.before(len(steps.after), sample)
            if self.predicts_clean:
                clean = predicted_clean(self.scheduler, model_output, timestep, sample)
                steps.clean.append(clean)
            steps.timestep.append(float(timestep))
            result = inner(model_output, timestep, sample, *args, **kw)
            if self.replace is not None:
                result = (self.replace(len(steps.after) + 1).to(result[0]),)
            steps.after.append(result[0].clone())
            return result

        self.scheduler.step = step

    def __exit__(self, *_: object) -> None:
        del self.scheduler.step  # no longer shadows the method of the class
