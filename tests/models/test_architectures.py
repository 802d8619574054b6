"""Every family on a tiny checkpoint of its own classes: shapes, steps, guidance, activations."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import tiny_models
import torch
from run_helpers import carry_out, generated

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.models import loading, weights
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.layers import image_output_index
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.models.schedulers import level_of, new_scheduler, noised, predicted_clean
from ldmprobe_core.models.token_grid import to_grid
from ldmprobe_core.pipeline.plan import plan_study
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import make_samples

CPU = torch.device("cpu")
FLOW = {"sd3", "flux"}
DIFFUSION = ("lms", "ddim", "pndm", "euler", "heun", "dpm++", "unipc")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: tiny_models.write(name, root / name) for name in tiny_models.FAMILIES}


def study_of(folder, name, **parts):
    content = {
        "name": name,
        "model": {"source": str(folder)},
        "prompts": {"items": [f"a ball {i}" for i in range(4)]},
        "sampling": {
            "steps": 3,
            "batch": 2,
            "guidance": 2.0,
            "threads": 1,
            "scheduler": "flow" if name in FLOW else "ddim",
        },
        "bootstrap": {"resamples": 200},
    }
    for key, value in parts.items():
        content[key] = {**content.get(key, {}), **value}
    return parse_study(content)


def sampler_of(study):
    architecture = detect_architecture(weights.model_folder(study.model))
    return PipelineSampler(loading.load_pipeline(study, CPU), architecture, study)


SHAPES = {  # (y, x, channels) of the first and last self-attention, and how many there are
    "sd1": ((8, 8, 8), (8, 8, 8), 4),
    "sd2": ((8, 8, 8), (8, 8, 8), 4),
    "sdxl": ((8, 8, 8), (8, 8, 8), 5),
    "sd3": ((4, 4, 16), (4, 4, 16), 2),
    "pixart": ((4, 4, 16), (4, 4, 16), 2),
    "flux": ((4, 4, 32), (4, 4, 32), 2),
}


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_a_plan_of_each_family(folders, name):
    plan = plan_study(study_of(folders[name], name))
    shapes = [plan.shapes[name] for name in plan.layers]
    assert plan.shapes["latents"] == (8, 8, 4)
    assert (shapes[0], shapes[-1], len(shapes)) == SHAPES[name]
    assert plan.size == (16, 16)
    assert not plan.missing


@pytest.mark.parametrize("layers", ["self-attention", "blocks", "vae"])
@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_generation_and_shapes_of_each_family(folders, name, layers):
    study = study_of(folders[name], name, capture={"layers": [layers]})
    made = generated(sampler_of(study), make_samples(study)[:2])
    plan = plan_study(study)
    assert made.activations.values.keys() == plan.shapes.keys()
    assert plan.shapes
    for layer, shape in plan.shapes.items():
        assert made.activations.values[layer].shape == (2, len(plan.steps), *shape)
        assert np.isfinite(made.activations.values[layer]).all()
        if layer == "latents":  # the denoiser's input: there is no permuted one
            continue
        assert made.permuted.values[layer].shape == (2, len(plan.steps), *shape)
        assert (made.activations.values[layer] != made.permuted.values[layer]).any()
    assert made.timestep == pytest.approx(plan.steps)
    assert made.image.shape == (2, 16, 16, 3)


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_images_are_the_pipelines_own(folders, name):
    """The pipeline alone, decoding by itself, gives the finished images."""
    study = study_of(folders[name], name, controls={"permuted_weights": False})
    sampler = sampler_of(study)
    samples = make_samples(study)[:2]
    made = generated(sampler, samples)
    images = sampler.pipeline(
        prompt=[s.prompt for s in samples],
        num_inference_steps=3,
        generator=[torch.Generator().manual_seed(s.seed) for s in samples],
        output_type="np",
        **sampler.architecture.arguments(2.0, None),
    ).images
    assert np.abs(made.image.astype(int) - np.rint(images * 255)).max() <= 1


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_an_activation_is_what_its_module_gives_on_the_same_input(folders, name):
    """The module's own forward on a recorded input, its image tokens laid out by a slow loop."""
    study = study_of(folders[name], name, controls={"permuted_weights": False})
    sampler = sampler_of(study)
    layer = sampler.layers[-1]
    module = dict(sampler.denoiser.named_modules())[layer]
    calls = []
    hook = module.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    made = generated(sampler, make_samples(study)[:2])
    hook.remove()
    values = made.activations.values[layer]
    y, x = values.shape[2:4]
    for step, (args, kwargs) in enumerate(calls):
        with torch.no_grad():
            output = module.forward(*args, **kwargs)
        if isinstance(output, tuple):  # joint attention: image first, then text
            output = output[0]
        image = output[-2:, -y * x :] if name == "flux" else output[-2:]  # text comes first in flux
        for row in range(y):
            for column in range(x):
                np.testing.assert_allclose(
                    values[:, step, row, column], image[:, row * x + column], rtol=2e-3, atol=1e-4
                )


def test_joint_blocks_give_the_image_stream(folders):
    """The text comes first in their output; moving one latent must move the captured tokens."""
    for name in ("sd3", "flux"):
        study = study_of(folders[name], name, capture={"layers": ["blocks"]})
        sampler = sampler_of(study)
        modules = dict(sampler.denoiser.named_modules())
        for layer in sampler.layers:
            assert image_output_index(sampler.architecture, modules[layer]) == 1
        architecture = sampler.architecture
        with torch.device("meta"):
            call = architecture.dummy_inputs()
            outputs = {}
            denoiser, _ = loading.meta_modules(architecture)
            for layer in sampler.layers:
                dict(denoiser.named_modules())[layer].register_forward_hook(
                    lambda m, i, o, layer=layer, outputs=outputs: outputs.update({layer: o})
                )
            denoiser(**call)
        for layer in sampler.layers[:-1]:
            assert outputs[layer][1].shape[1] == architecture.grid.height * architecture.grid.width
            assert to_grid(outputs[layer], architecture.grid, 1).shape[1:3] == (4, 4)


def test_flux_packing_is_undone(folders):
    architecture = detect_architecture(folders["flux"])
    latents = torch.arange(2 * 4 * 64.0).reshape(2, 4, 8, 8)
    packed = architecture.pack(latents)
    assert packed.shape == (2, 16, 16)
    # token (row 1, column 2) holds the 2 x 2 latents from (2, 4), channel by channel
    expected = [latents[0, c, 2 + i, 4 + j] for c in range(4) for i in range(2) for j in range(2)]
    assert packed[0, 1 * 4 + 2].tolist() == [float(v) for v in expected]
    torch.testing.assert_close(architecture.unpack(packed), latents)


# --- schedulers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
@pytest.mark.parametrize("scheduler", [*DIFFUSION, "flow"])
def test_the_step_axis_is_the_schedulers(folders, name, scheduler):
    study = study_of(folders[name], name, sampling={"scheduler": scheduler, "steps": 15})
    if (scheduler == "flow") != (name in FLOW):
        with pytest.raises(UserError, match=r"sampling\.scheduler is .*: use "):
            plan_study(study)
        return
    steps = plan_study(study).steps
    assert len(steps) == {"pndm": 16, "heun": 29}.get(scheduler, 15)
    assert all(a >= b for a, b in pairwise(steps))


@pytest.mark.parametrize("scheduler", DIFFUSION)
def test_a_generated_batch_has_the_planned_steps(folders, scheduler):
    study = study_of(folders["sd1"], "sd1", sampling={"scheduler": scheduler, "steps": 4})
    made = generated(sampler_of(study), make_samples(study)[:2])
    assert made.timestep == pytest.approx(plan_study(study).steps)
    assert made.trajectory.shape[1] == len(made.timestep)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", [*DIFFUSION, "flow"])
def test_a_perfect_denoiser_gives_the_clean_latents_at_every_step(folders, scheduler, prediction):
    """Known x0 and noise, mixed by alpha-bar or sigma computed here; the right output gives x0."""
    if scheduler == "flow" and prediction != "epsilon":
        return
    config = detect_architecture(folders["sd3" if scheduler == "flow" else "sd1"]).scheduler
    own = new_scheduler(scheduler, {**config, "prediction_type": prediction})
    own.set_timesteps(6)
    random = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(2, 4, 8, 8, sampler=random) for _ in range(2))
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


def test_ddim_does_not_clip_what_the_config_says_nothing_of(folders):
    architecture = detect_architecture(folders["sd1"])
    assert architecture.scheduler.get("clip_sample") is None
    assert new_scheduler("ddim", architecture.scheduler).config.clip_sample is False


def test_levels_of_an_unset_position_are_found_by_timestep(folders):
    own = new_scheduler("euler", detect_architecture(folders["sd1"]).scheduler)
    own.set_timesteps(5)
    assert level_of(own, own.timesteps[2]).noise == pytest.approx(float(own.sigmas[2]))


# --- guidance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_the_conditional_half_is_kept_under_guidance(folders, name):
    """At the first step the latents are the same with and without guidance: so is that half."""
    guided = study_of(folders[name], name, controls={"permuted_weights": False})
    free = study_of(
        folders[name], name, controls={"permuted_weights": False}, sampling={"guidance": 1.0}
    )
    samples = make_samples(guided)[:2]
    a, b = (generated(sampler_of(study), samples) for study in (guided, free))
    np.testing.assert_array_equal(
        a.activations.values["latents"][:, 0], b.activations.values["latents"][:, 0]
    )
    for layer in sampler_of(guided).layers:
        values = a.activations.values[layer]
        same = np.allclose(values[:, 0], b.activations.values[layer][:, 0], rtol=1e-2, atol=1e-3)
        assert same != (name == "flux")  # there guidance is an input of the denoiser


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_negative_prompts_change_the_image_and_leave_the_conditional_half(folders, name):
    plain = study_of(
        folders[name], name, controls={"permuted_weights": False}, prompts={"negative": "a red car"}
    )
    other = study_of(
        folders[name],
        name,
        controls={"permuted_weights": False},
        prompts={"negative": "a blue ring"},
    )
    samples = make_samples(plain)[:2]
    a, b = (generated(sampler_of(study), samples) for study in (plain, other))
    assert (a.activations.nonfinite[next(iter(a.activations.nonfinite))] == 0).all()
    for layer, values in a.activations.values.items():
        np.testing.assert_allclose(
            values[:, 0], b.activations.values[layer][:, 0], rtol=1e-2, atol=1e-3
        )
        assert values.shape[1] == 3
    assert (a.trajectory != b.trajectory).any() or (a.clean != b.clean).any()


def test_flux_with_a_negative_prompt_is_two_calls_and_the_first_is_kept(folders):
    study = study_of(folders["flux"], "flux", prompts={"negative": "a car"})
    sampler = sampler_of(study)
    assert (sampler.guidance.batch_copies, sampler.guidance.calls_per_step) == (1, 2)
    seen = []
    sampler.denoiser.register_forward_pre_hook(
        lambda m, a, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    generated(sampler, make_samples(study)[:2])
    assert len(seen) == 6
    assert not torch.equal(seen[0], seen[1])


def test_a_guidance_that_is_not_the_declared_one_is_an_error(folders):
    study = study_of(folders["sd1"], "sd1")
    sampler = sampler_of(study)
    sampler.scale = 1.0  # the pipeline will now send one half, where two were declared
    with pytest.raises(RuntimeError, match="guidance is not what was declared"):
        generated(sampler, make_samples(study)[:2])
    flux = sampler_of(study_of(folders["flux"], "flux", prompts={"negative": "a car"}))
    flux.study = study_of(folders["flux"], "flux")
    with pytest.raises(RuntimeError, match="called 1 times in one step, not 2"):
        generated(flux, make_samples(flux.study)[:2])


def test_a_compiled_model_is_an_error_that_names_the_layers(folders):
    """A compiled forward leaves no trace for hooks on what is inside; simulated, as a compiler
    would do it, by a forward of its own."""
    study = study_of(folders["sd1"], "sd1", controls={"permuted_weights": False})
    sampler = sampler_of(study)
    module = dict(sampler.denoiser.named_modules())[sampler.layers[0]]
    module.__class__ = type("Compiled", (type(module),), {"__call__": type(module).forward})
    with pytest.raises(RuntimeError, match=rf"no activations came from {sampler.layers[0]}"):
        generated(sampler, make_samples(study)[:2])


# --- options and mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes_are_close_to_float32(folders, dtype):
    whole, half = (
        study_of(folders["sd1"], "sd1", model={"dtype": d, "attention_slicing": d != "float32"})
        for d in ("float32", dtype)
    )
    samples = make_samples(whole)[:2]
    a, b = (generated(sampler_of(study), samples) for study in (whole, half))
    layer = next(iter(a.activations.values))
    np.testing.assert_allclose(
        a.activations.values[layer][:, 0], b.activations.values[layer][:, 0], atol=0.05
    )
    assert sampler_of(half).denoiser.dtype == getattr(torch, dtype)
    assert sampler_of(half).pipeline.vae.dtype == torch.float32


def test_cpu_offload_without_a_gpu_is_said(folders):
    with pytest.raises(UserError, match=r"model\.cpu_offload is on"):
        sampler_of(study_of(folders["sd1"], "sd1", model={"cpu_offload": True}))


def test_a_preset_that_a_family_lacks_lists_those_it_has(folders):
    study = study_of(folders["sd3"], "sd3", capture={"layers": ["cross-attention"]})
    with pytest.raises(UserError, match="this model has self-attention, blocks, vae"):
        plan_study(study)


def test_folders_that_are_no_pipeline_we_know(folders, tmp_path):
    for change, words in (
        (lambda f: (f / "model_index.json").write_text("{"), "does not name a pipeline"),
        (
            lambda f: (f / "model_index.json").write_text('{"_class_name": "WanPipeline"}'),
            "a WanPipeline cannot be probed; supported are StableDiffusionPipeline",
        ),
        (lambda f: (f / "unet" / "config.json").unlink(), "no whole diffusers pipeline"),
        (lambda f: (f / "vae" / "config.json").write_text("[]"), "cannot be read"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folders["sd1"], folder)
        change(folder)
        with pytest.raises(UserError, match=words):
            plan_study(study_of(folder, "sd1"))
    folder = tmp_path / "pickled"
    shutil.copytree(folders["sd1"], folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    plan = plan_study(study_of(folder, "sd1"))
    assert any("safetensors" in sentence for sentence in plan.missing)
    config = json.loads((folders["sd1"] / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "norm_num_groups": 7}))
    with pytest.raises(UserError, match="unusable config"):
        plan_study(study_of(folder, "sd1"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_a_whole_study_of_a_family(folders, name, tmp_path):
    study = study_of(
        folders[name],
        name,
        prompts={"items": [f"a ball {i}" for i in range(8)]},
        labels={"shading": "retinex"},
        capture={"layers": ["self-attention", "vae"]},
    )
    run = carry_out(study, str(tmp_path))
    summary = build_report(run, {})
    assert summary.layers == len(plan_study(study).layers)
    assert "vae.decoder.mid_block.attentions.0" in run.layers
    assert summary.properties["shading"].best.mean is not None
