"""What the tap of a scheduler records, against the scheduler's own results."""

import diffusers
import pytest
import tiny_models
import torch

from ldmprobe_core.models.architectures.base import Guidance
from ldmprobe_core.models.scheduler_tap import SchedulerTap, StepRecorder


@pytest.fixture
def scheduler():
    """DDIM, whose results include the clean latents that a step predicts."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **tiny_models.NOISE)
    scheduler.set_timesteps(4)
    return scheduler


@pytest.fixture
def outputs():
    """Denoiser outputs of four steps, two samples."""
    return torch.randn(4, 2, 4, 3, 5, generator=torch.Generator().manual_seed(1))


def tapped(scheduler, outputs, start, predicts_clean=True, replace=None):
    """Record the steps of a denoiser with given outputs, and what each step started from."""
    steps, started = StepRecorder(), []
    tap = SchedulerTap(
        scheduler,
        steps,
        Guidance(calls_per_step=1, batch_copies=1),
        lambda index, latents: started.append((index, latents.clone())),
        predicts_clean,
        replace,
    )
    latents = start
    with tap:
        for output, timestep in zip(outputs, scheduler.timesteps, strict=True):
            steps.calls = 1
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return steps, started


def test_tap_records_latents_and_clean_latents_of_the_schedulers_own_steps(scheduler, outputs):
    start = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(2))
    steps, started = tapped(scheduler, outputs, start)
    latents = start
    for i, timestep in enumerate(scheduler.timesteps):
        own = scheduler.step(outputs[i], timestep, latents)
        assert started[i][0] == i
        torch.testing.assert_close(started[i][1], latents, rtol=0, atol=0)
        torch.testing.assert_close(steps.clean[i], own.pred_original_sample, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(steps.after[i], own.prev_sample, rtol=0, atol=0)
        latents = own.prev_sample
    assert len(steps.clean) == len(steps.after) == len(started) == 4
    assert steps.timestep == [float(t) for t in scheduler.timesteps]


def test_tap_without_clean_latents_records_none(scheduler, outputs):
    assert tapped(scheduler, outputs, outputs[0], predicts_clean=False)[0].clean == []


def test_tap_that_replaces_results_records_the_clean_latents_of_the_replaced_ones(
    scheduler, outputs
):
    """DDIM: x0 = (x - (1 - alpha_bar)^0.5 output) / alpha_bar^0.5 of the latents x of the step."""
    given = torch.randn(5, 2, 4, 3, 5, generator=torch.Generator().manual_seed(3))
    steps, _ = tapped(scheduler, outputs, given[0], replace=lambda finished: given[finished])
    for i, timestep in enumerate(scheduler.timesteps):
        alpha_bar = scheduler.alphas_cumprod[timestep]
        clean = (given[i] - (1 - alpha_bar) ** 0.5 * outputs[i]) / alpha_bar**0.5
        torch.testing.assert_close(steps.after[i], given[i + 1], rtol=0, atol=0)
        torch.testing.assert_close(steps.clean[i], clean, rtol=1e-4, atol=1e-4)
