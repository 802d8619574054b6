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
    """Collects what passes during one batch; one entry a step."""

    after: list[Tensor] = field(default_factory=list)
    clean: list[Tensor] = field(default_factory=list)
    timestep: list[float] = field(default_factory=list)
    calls: int = 0  # of the denoiser, since the last step


class SchedulerTap:
    """Replaces ``scheduler.step`` by itself plus a look at what comes in and goes out.

    Args:
        before: is shown the latents that a step begins from.
        replace: step, from 1, to the latents that go on instead of what that step made.
    """

    def __init__(
        self,
        scheduler: Any,
        watch: StepRecorder,
        guidance: Guidance,
        before: Callable[[int, Tensor], None],
        replace: Callable[[int], Tensor] | None,
    ) -> None:
        self.scheduler, self.watch, self.before = scheduler, watch, before
        self.guidance, self.replace = guidance, replace

    def __enter__(self) -> None:
        inner, watch = self.scheduler.step, self.watch

        @functools.wraps(inner)  # pipelines look at its signature
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kw: Any) -> Any:
            if watch.calls != self.guidance.calls_per_step:
                raise RuntimeError(
                    f"the denoiser was called {watch.calls} times in one step, not "
                    f"{self.guidance.calls_per_step}: the pipeline's guidance is not what was "
                    "declared, or "
                    "the model was compiled, which bypasses hooks"
                )
            watch.calls = 0
            self.before(len(watch.after), sample)
            watch.clean.append(predicted_clean(self.scheduler, model_output, timestep, sample))
            watch.timestep.append(float(timestep))
            result = inner(model_output, timestep, sample, *args, **kw)
            if self.replace is not None:
                result = (self.replace(len(watch.after) + 1).to(result[0]),)
            watch.after.append(result[0].clone())
            return result

        self.scheduler.step = step

    def __exit__(self, *_: object) -> None:
        del self.scheduler.step  # the class's own method shows again
