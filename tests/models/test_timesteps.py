"""Timesteps are the scheduler's own, or refused before anything is generated."""

import json

import numpy as np
import pytest
import tiny_models
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.schedulers import level_of
from ldmprobe_core.models.sources.pipeline import PipelineSource
from ldmprobe_core.models.timesteps import log_snr, scheduler_of, timesteps
from ldmprobe_core.study.loading import parse_study

SCHEDULERS = ("lms", "ddim", "pndm", "euler", "heun", "dpm++", "unipc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.write("sd1", tmp_path_factory.mktemp("sd1") / "m")


def study(folder, scheduler, steps):
    return parse_study(
        {"model": {"source": str(folder)}, "sampling": {"scheduler": scheduler, "steps": steps}}
    )


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [2, 3, 15, 50])
def test_timesteps_are_those_that_the_scheduler_itself_sets(folder, scheduler, steps):
    values = timesteps(detect_architecture(folder), study(folder, scheduler, steps))
    assert len(set(values)) == steps
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_log_snr_is_that_of_the_training_noise_at_the_timestep(folder, scheduler):
    """Products of 1 - beta, interpolated between whole timesteps as samplers interpolate sigma."""
    architecture, made = detect_architecture(folder), study(folder, scheduler, 7)
    config = architecture.scheduler
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    sigmas = np.interp(
        timesteps(architecture, made), np.arange(1000), np.sqrt((1 - alphas) / alphas)
    )
    np.testing.assert_allclose(log_snr(architecture, made), -2 * np.log(sigmas), atol=2e-3)


def test_log_snr_of_flow_matching_is_that_of_the_interpolated_latents(tmp_path):
    architecture = detect_architecture(tiny_models.write("sd3", tmp_path / "m"))
    made = study(tmp_path / "m", "flow", 5)
    first, *values = log_snr(architecture, made)
    assert first is None  # pure noise
    sigmas = np.array(timesteps(architecture, made)[1:]) / 1000
    np.testing.assert_allclose(values, 2 * np.log((1 - sigmas) / sigmas), atol=1e-4)


def test_level_of_is_that_of_the_timestep_wherever_the_scheduler_stands():
    """Of flow matching, sigma x noise + (1 - sigma) x clean."""
    for scheduler_class in (FlowMatchHeunDiscreteScheduler, FlowMatchEulerDiscreteScheduler):
        for begins in (None, 0):
            scheduler = scheduler_class(shift=3.0)
            scheduler.set_timesteps(4)
            if begins is not None:
                scheduler.set_begin_index(begins)
            latents = torch.zeros(1, 4, 2, 2)
            for timestep in scheduler.timesteps:
                for one in (*scheduler.timesteps, timestep):
                    sigma = float(one) / 1000
                    assert level_of(scheduler, one) == pytest.approx((1 - sigma, sigma), abs=1e-6)
                latents = scheduler.step(latents, timestep, latents).prev_sample


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_timesteps_refuse_more_steps_than_the_schedule_has(folder, scheduler):
    words = r"sampling\.steps: .*1001 steps.*Fix: lower sampling.steps, as to 500, or choose"
    with pytest.raises(UserError, match=words):
        timesteps(detect_architecture(folder), study(folder, scheduler, 1001))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sd1", {"timestep_spacing": "foo"}),
        ("sd1", {"beta_schedule": "foo"}),
        ("sd1", {"beta_end": float("inf")}),
        (
            "sd1",
            {
                "timestep_type": "continuous",
                "prediction_type": "v_prediction",
                "sigma_min": 0.002,
                "sigma_max": 80,
            },
        ),
        ("sd3", {"use_dynamic_shifting": True, "base_image_seq_len": 4096}),
    ],
)
def test_a_scheduler_config_that_cannot_be_used_is_one_sentence(tmp_path, name, change):
    folder = tiny_models.write(name, tmp_path / name)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    kind = "flow" if name == "sd3" else "euler"
    with pytest.raises(UserError, match=r"sampling\.scheduler.*Fix") as failure:
        timesteps(detect_architecture(folder), study(folder, kind, 5))
    assert "sampling.steps" not in str(failure.value)  # fewer steps would not help


@pytest.mark.parametrize("trained", [0, -5, "1000", 1000.5, None, 10**9])
def test_timesteps_refuse_a_training_schedule_that_no_model_has(folder, trained):
    """Schedulers list all noise levels, so that 10**9 of them would fill the memory."""
    architecture = detect_architecture(folder)
    architecture.scheduler["num_train_timesteps"] = trained
    with pytest.raises(UserError, match=r"model: num_train_timesteps .* is .*Fix: .* to 100000"):
        timesteps(architecture, study(folder, "ddim", 3))


def test_predicted_noise_at_zero_signal_is_refused(tmp_path):
    """Dividing by an alpha of 0 would give pictures of NaN; velocity prediction has no division."""
    folder = tiny_models.write("sd1", tmp_path / "m")
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    path.write_text(json.dumps(config | {"prediction_type": "epsilon"}))
    with pytest.raises(UserError, match="a step has no signal at all"):
        timesteps(detect_architecture(folder), study(folder, "ddim", 5))
    path.write_text(json.dumps(config | {"prediction_type": "v_prediction"}))
    assert len(timesteps(detect_architecture(folder), study(folder, "ddim", 5))) == 5


@pytest.mark.parametrize("scheduler", ["lms", "ddim", "unipc"])
def test_timesteps_refuse_an_absurd_number_of_steps_at_once(folder, scheduler):
    usual = study(folder, scheduler, 3)
    sampling = usual.sampling.model_copy(update={"steps": 2_000_000_000})
    absurd = usual.model_copy(update={"sampling": sampling})  # beyond the schema's limit
    with pytest.raises(UserError, match=r"the schedule has 1000 steps .*2000000000 steps.*Fix"):
        timesteps(detect_architecture(folder), absurd)


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "euler", "unipc"])
@pytest.mark.parametrize("steps", [999, 1000])
def test_as_many_steps_as_trained_are_refused_or_run_to_their_end(folder, scheduler, steps):
    """Timesteps 1..1000 of a schedule with 1000 entries would fail in the middle of a batch."""
    architecture = detect_architecture(folder)
    try:
        timesteps(architecture, study(folder, scheduler, steps))
    except UserError:
        return
    used = scheduler_of(architecture, scheduler)
    architecture.set_steps(used, steps)
    latents = torch.ones(1, 4, 2, 2)
    for timestep in used.timesteps:
        model_input = used.scale_model_input(latents, timestep)
        latents = used.step(model_input * 0, timestep, latents).prev_sample
    assert latents.isfinite().all()


def test_timesteps_refuse_a_scheduler_that_draws_noise_without_a_seed():
    """The pipeline of Stable Diffusion 3 passes no generator to its scheduler."""
    pipe = tiny_models.stable_diffusion_3()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    state = torch.random.get_rng_state()
    for kind in (FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler):
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        source = PipelineSource(pipe)
        made = source.study_of(parse_study({"sampling": {"steps": 4}}))
        if kind is FlowMatchEulerDiscreteScheduler:
            assert len(timesteps(source.architecture, made)) == 4
            continue
        with pytest.raises(UserError, match=r"a step draws noise without a seed.*Fix: "):
            timesteps(source.architecture, made)
    assert torch.equal(torch.random.get_rng_state(), state)
