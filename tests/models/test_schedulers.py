"""Schedulers: steps, noise levels, predicted clean latents."""

import inspect
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import tiny_models
import torch
from model_helpers import FLOW_ARCHITECTURES, architecture_study, load_sampler
from run_helpers import generated
from tiny_models import write_tiny_model

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.schedulers import (
    level_of,
    new_scheduler,
    noised,
    predicted_clean,
    scheduler_class_name,
)
from ldmprobe_core.models.timesteps import scheduler_of, timesteps
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
        with pytest.raises(
            UserError, match=r"sampling\.scheduler is .*Fix: set sampling\.scheduler to "
        ):
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


CONFIGS = (
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_lu_lambdas": True},
    {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    {"use_karras_sigmas": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    {"use_karras_sigmas": True, "use_beta_sigmas": True},
    {"prediction_type": "sample"},
    {"prediction_type": "nonsense"},
    {"thresholding": True, "sample_max_value": 2.0},
    {"clip_sample": True, "clip_sample_range": 0.7},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    },
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "linspace"},
    {"final_sigmas_type": "sigma_min"},
    {"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver"},
    {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
    {"predict_x0": False, "prediction_type": "v_prediction"},
    {"solver_type": "heun", "solver_order": 3},
    {"variance_type": "learned_range"},
    {"timestep_type": "continuous", "prediction_type": "v_prediction"},
    {"interpolation_type": "log_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"sigma_min": 0.1, "sigma_max": 5.0, "use_karras_sigmas": True},
    {"skip_prk_steps": False},
)


@pytest.mark.parametrize("scheduler", DIFFUSION)
def test_predicted_clean_equals_the_schedulers_own_for_any_config_or_is_refused(
    model_folders, scheduler
):
    architecture = detect_architecture(model_folders["sdxl"])  # DDIM, nothing is corrected
    published = architecture.scheduler
    study = architecture_study(
        model_folders["sdxl"], "sdxl", sampling={"scheduler": scheduler, "steps": 6}
    )
    n_checked = 0
    for change in CONFIGS:
        architecture.scheduler = {**published, "_class_name": scheduler_class_name(scheduler)}
        architecture.scheduler = {**architecture.scheduler, "skip_prk_steps": True, **change}
        refusal = refusal_of(architecture, study)
        if refusal is not None:
            assert any(key in refusal for key in change), refusal
            continue
        n_checked += 1
        own = scheduler_of(architecture, scheduler)
        own.set_timesteps(6)
        for ours, theirs, level, expected in both_predictions(own):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=str(change))
            assert tuple(level) == pytest.approx(expected, rel=1e-4), change
    assert n_checked >= 8


def refusal_of(architecture, study):
    try:
        timesteps(architecture, study)
    except UserError as error:
        return str(error)
    return None


def scheduler_is(own, *prefixes):
    return type(own).__name__.startswith(prefixes)


def both_predictions(own):
    """At each step: our clean latents, the scheduler's, our level, the level by its sigmas."""
    random = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 4, 4, 4, generator=random) * own.init_noise_sigma
    converted = []
    if hasattr(own, "convert_model_output"):
        convert = own.convert_model_output

        def record(*args, **arguments):
            converted.append(convert(*args, **arguments))
            return converted[-1]

        own.convert_model_output = record
    for i, t in enumerate(own.timesteps):
        output = torch.randn(latents.shape, generator=random)
        own.scale_model_input(latents, t)
        level, ours = level_of(own, t), predicted_clean(own, output, t, latents)
        if hasattr(own, "sigmas"):
            sigma = float(own.sigmas[i])
            in_sigmas = scheduler_is(own, "LMS", "Euler", "Heun")
            a = 1.0 if in_sigmas else 1 / (1 + sigma**2) ** 0.5
            expected = (1 - sigma, sigma) if own.config.get("use_flow_sigmas") else (a, a * sigma)
        else:
            alpha_bar = float(own.alphas_cumprod[int(t)])
            expected = (alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
        accepted = inspect.signature(own.step).parameters
        arguments = {"generator": random} if "generator" in accepted else {}
        step = own.step(output, t, latents, **arguments)
        theirs = getattr(step, "pred_original_sample", None)
        if converted:
            theirs = converted.pop()
            key = "predict_x0" if scheduler_is(own, "UniPC") else "algorithm_type"
            if own.config[key] in (False, "dpmsolver", "sde-dpmsolver"):
                theirs = (latents - expected[1] * theirs) / expected[0]
        if theirs is None:  # PNDM tells no clean latents: the textbook formulas
            a, s = expected
            noise = output if own.config.prediction_type == "epsilon" else a * output + s * latents
            theirs = (latents - s * noise) / a
        yield ours, theirs, level, expected
        latents = step.prev_sample


def test_predicted_clean_of_flow_matching_with_any_sigmas(model_folders):
    """Euler's own step to sigma 0 is the predicted clean latents."""
    architecture = detect_architecture(model_folders["sd3"])
    published = architecture.scheduler
    for change in (
        {},
        {"use_dynamic_shifting": True},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"shift_terminal": 0.1, "time_shift_type": "linear"},
    ):
        architecture.scheduler = {**published, **change}
        own = scheduler_of(architecture, "flow")
        architecture.set_steps(own, 5)
        latents, output = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
        for i, t in enumerate(own.timesteps):
            ours, sigma = predicted_clean(own, output, t, latents), own.sigmas[i]
            assert tuple(level_of(own, t)) == pytest.approx((1 - float(sigma), float(sigma)))
            torch.testing.assert_close(ours, latents - sigma * output, rtol=1e-5, atol=1e-5)
            own.step(output, t, latents)


@pytest.mark.parametrize("change", [{"stochastic_sampling": True}, {"invert_sigmas": True}])
def test_flow_matching_refuses_keys_that_sampling_cannot_honour(model_folders, change):
    architecture = detect_architecture(model_folders["sd3"])
    architecture.scheduler = {**architecture.scheduler, **change}
    study = architecture_study(model_folders["sd3"], "sd3")
    with pytest.raises(UserError, match=f"{next(iter(change))}.*Fix"):
        timesteps(architecture, study)


@pytest.mark.parametrize(
    "scheduler",
    ["EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "DEISMultistepScheduler"],
)
def test_level_of_a_scheduler_that_is_in_no_table(scheduler):
    own = getattr(diffusers, scheduler)(**tiny_models.NOISE)
    own.set_timesteps(6)
    for i, t in enumerate(own.timesteps):
        sigma, level = float(own.sigmas[i]), level_of(own, t)
        assert level.noise / level.clean == pytest.approx(sigma, rel=1e-4)


def test_new_scheduler_keeps_the_training_schedule_of_the_models_own_class():
    """Heun has other defaults of the betas than the class that the model was published with."""
    own = new_scheduler("heun", {"_class_name": "DDIMScheduler"})
    torch.testing.assert_close(own.alphas_cumprod, diffusers.DDIMScheduler().alphas_cumprod)


def test_new_scheduler_refuses_a_model_without_a_schedule_of_betas():
    with pytest.raises(UserError, match="EDMEulerScheduler"):
        new_scheduler("euler", {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5})
