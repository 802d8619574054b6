"""Recording of a scheduler's steps: timesteps, latents, and predicted clean latents."""

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
    """Latents and timesteps of one batch; each list has one element per sampler step.

    Attributes:
        after: latents after each step, in the pipeline's layout.
        clean: float32 clean latents that the denoiser predicts at each step, in the same layout;
            empty unless they were requested.
        timestep: the scheduler's timestep of each step, such as 981.0.
        prompt_embedding: mean over the text tokens of the prompt's embedding, (sample, channel);
            None if the denoiser receives no text.
        calls: number of denoiser calls since the last complete step.
    """

    after: list[Tensor] = field(default_factory=list)
    clean: list[Tensor] = field(default_factory=list)
    timestep: list[float] = field(default_factory=list)
    prompt_embedding: Tensor | None = None
    calls: int = 0


class SchedulerTap:
    """Context manager that records the steps of a scheduler and can replace their results.

    Diffusers has no callback that receives the inputs of a scheduler step.  The context manager
    therefore replaces the scheduler's method ``step`` by a wrapper, and restores it on exit.

    Args:
        scheduler: scheduler of the pipeline.
        steps: record to which latents and timesteps are appended.
        guidance: expected number of denoiser calls per step.
        before: function that is called before each step with its index (from 0) and the latents
            that the step starts from.
        predicts_clean: whether to record the predicted clean latents.
        replace: function from the number of finished steps to the latents that the pipeline
            continues with instead of the scheduler's result; None keeps the scheduler's result.

    Raises:
        RuntimeError: raised by a step if the number of denoiser calls is not the expected one.
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

        # Diffusers pipelines inspect the signature of `step` to decide which arguments to pass, so
        # the wrapper must show the signature of the original method.
        @functools.wraps(inner)
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kw: Any) -> Any:
            if steps.calls != self.guidance.calls_per_step:
                raise RuntimeError(
                    f"the denoiser was called {steps.calls} times in one step, not "
                    f"{self.guidance.calls_per_step} as its Architecture declares. Fix: if the "
                    "model was compiled, load it without compilation, which bypasses hooks; else "
                    "correct the method guidance of that Architecture class"
                )
            steps.calls = 0
            self.before(len(steps.after), sample)
            if self.predicts_clean:
                clean = predicted_clean(self.scheduler, model_output, timestep, sample)
                steps.clean.append(clean)
            steps.timestep.append(float(timestep))
            result = inner(model_output, timestep, sample, *args, **kw)
            if self.replace is not None:
                # The schedulers LCM and TCD return further tensors, which the pipeline expects, so
                # only the first one is replaced.
                result = (self.replace(len(steps.after) + 1).to(result[0]), *result[1:])
            steps.after.append(result[0].clone())
            return result

        self.scheduler.step = step

    def __exit__(self, *_: object) -> None:
        # The wrapper is an attribute of the instance.  When it is deleted, `step` is again the
        # method of the scheduler's class.
        del self.scheduler.step
