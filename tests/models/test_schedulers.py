"""Schedulers: steps, noise levels, predicted clean latents."""

from itertools import pairwise

import numpy as np
import pytest
import tiny_models
import torch
from model_helpers import FLOW_ARCHITECTURES, architecture_study, load_sampler
from run_helpers import generated
from tiny_models import write_tiny_model

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.schedulers import level_of, new_scheduler, noised, predicted_clean
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.samples import make_samples

DIFFUSION = ("lms", "ddim", "pndm", "euler", "heun", "dpm++", "unipc")


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
@pytest.mark.parametrize("scheduler", [*DIFFUSION, "flow"])
def test_planned_steps_of_each_architecture_and_scheduler(model_folders, name, scheduler):
    study = architecture_study(
        model_folders[name], name, sampling={"scheduler": scheduler, "steps": 15}
    )
    if (scheduler == "flow") != (name in FLOW_ARCHITECTURES):
        with pytest.raises(UserError, match=r"sampling\.scheduler is .*: use "):
            plan_study(study)
        return
    steps = plan_study(study).steps
    assert len(steps) == {"pndm": 16, "heun": 29}.get(scheduler, 15)
    assert all(a >= b for a, b in pairwise(steps))


@pytest.mark.parametrize("scheduler", DIFFUSION)
def test_generated_batch_has_the_planned_steps_of_each_scheduler(model_folders, scheduler):
    study = architecture_study(
        model_folders["sd1"], "sd1", sampling={"scheduler": scheduler, "steps": 4}
    )
    made = generated(load_sampler(study), make_samples(study)[:2])
    assert made.timestep == pytest.approx(plan_study(study).steps)
    assert made.trajectory.shape[1] == len(made.timestep)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", [*DIFFUSION, "flow"])
def test_predicted_clean_of_a_perfect_denoiser_is_the_clean_latents(
    model_folders, scheduler, prediction
):
    """Known x0 and noise, mixed by alpha-bar or sigma computed here; the right output gives x0."""
    if scheduler == "flow" and prediction != "epsilon":
        return
    config = detect_architecture(model_folders["sd3" if scheduler == "flow" else "sd1"]).scheduler
    own = new_scheduler(scheduler, {**config, "prediction_type": prediction})
    own.set_timesteps(6)
    random = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=random) for _ in range(2))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = (1 - betas).cumprod(0)
    for i, t in enumerate(own.timesteps):
        if scheduler == "flow":
            sigma = float(t) / 1000
            latents, output = (1 - sigma) * clean + sigma * noise, noise - clean
        else:
            # Heun, LMS and Euler place steps between whole numbers: interpolate sigma as they do
            sigmas = ((1 - alpha_bar) / alpha_bar) ** 0.5
            sigma = float(np.interp(float(t), np.arange(1000), sigmas))
            a = 1 / (1 + sigma**2) ** 0.5
            s = sigma * a
            output = noise if prediction == "epsilon" else a * noise - s * clean
            scale = a if scheduler in ("lms", "euler", "heun") else 1.0
            latents = (a * clean + s * noise) / scale
        torch.testing.assert_close(noised(own, clean, noise, i), latents, rtol=1e-3, atol=1e-3)
        found = predicted_clean(own, output, t, latents)
        torch.testing.assert_close(found, clean, rtol=2e-3, atol=2e-3)
        own.step(output, t, latents)  # moves the scheduler's own position


def test_new_scheduler_ddim_does_not_clip_unless_the_config_says_so(model_folders):
    architecture = detect_architecture(model_folders["sd1"])
    assert architecture.scheduler.get("clip_sample") is None
    assert new_scheduler("ddim", architecture.scheduler).config.clip_sample is False


def test_level_of_uses_the_timestep_when_the_position_is_unset(model_folders):
    own = new_scheduler("euler", detect_architecture(model_folders["sd1"]).scheduler)
    own.set_timesteps(5)
    assert level_of(own, own.timesteps[2]).noise == pytest.approx(float(own.sigmas[2]))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", ["ddim", "lms"])
def test_predicted_clean_equals_the_schedulers_own_prediction(
    tmp_path, tiny_study, scheduler, prediction
):
    folder = write_tiny_model(tmp_path / "model", prediction)
    own = new_scheduler(scheduler, detect_architecture(folder).scheduler)
    own.set_timesteps(5)
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=random) * own.init_noise_sigma
    for t in own.timesteps:
        output = torch.randn(2, 4, 8, 8, generator=random)
        own.scale_model_input(latents, t)
        found = predicted_clean(own, output, t, latents)
        step = own.step(output, t, latents)
        torch.testing.assert_close(found, step.pred_original_sample, rtol=1e-4, atol=1e-4)
        latents = step.prev_sample
