"""Every architecture on a tiny checkpoint of its own classes: plan, generation, activations."""

import copy
import json
import shutil

import numpy as np
import pytest
import tiny_models
import torch
from model_helpers import architecture_study, load_sampler
from run_helpers import carry_out, generated

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import architecture_of, detect_architecture
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.layers import CLEAN_PIXELS, INPUT_CONTROLS
from ldmprobe_core.study.samples import make_samples

SHAPES = {  # (y, x, channels) of the first and last self-attention, and how many there are
    "sd1": ((8, 8, 8), (8, 8, 8), 4),
    "sd2": ((8, 8, 8), (8, 8, 8), 4),
    "sdxl": ((8, 8, 8), (8, 8, 8), 5),
    "sd3": ((4, 4, 16), (4, 4, 16), 2),
    "pixart": ((4, 4, 16), (4, 4, 16), 2),
    "flux": ((4, 4, 32), (4, 4, 32), 2),
}


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_plan_of_each_architecture(model_folders, name):
    plan = plan_study(architecture_study(model_folders[name], name))
    shapes = [plan.shapes[name] for name in plan.layers]
    assert plan.shapes["latents"] == (8, 8, 4)
    assert (shapes[0], shapes[-1], len(shapes)) == SHAPES[name]
    assert plan.size == (16, 16)
    assert not plan.missing
    largest = max(shape.y * shape.x * shape.channels for shape in plan.shapes.values())
    assert plan.memory["intermediate values"] >= plan.study.sampling.batch * largest * 4


@pytest.mark.parametrize("layers", ["self-attention", "blocks", "vae"])
@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_generation_and_shapes_of_each_architecture(model_folders, name, layers):
    study = architecture_study(model_folders[name], name, capture={"layers": [layers]})
    made = generated(load_sampler(study), make_samples(study)[:2])
    plan = plan_study(study)
    # The clean image's pixels come from the step images of some samples, not from this sink.
    assert made.activations.values.keys() == plan.shapes.keys() - {CLEAN_PIXELS}
    assert plan.shapes
    for layer in made.activations.values:
        shape = plan.shapes[layer]
        assert made.activations.values[layer].shape == (2, len(plan.steps), *shape)
        assert np.isfinite(made.activations.values[layer]).all()
        if layer in INPUT_CONTROLS:  # these do not depend on the denoiser's weights
            continue
        assert made.permuted.values[layer].shape == (2, len(plan.steps), *shape)
        assert (made.activations.values[layer] != made.permuted.values[layer]).any()
    assert made.timestep == pytest.approx(plan.steps)
    assert made.image.shape == (2, 16, 16, 3)


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_images_of_each_architecture_equal_its_pipelines(model_folders, name):
    """The pipeline alone, decoding by itself, gives the finished images."""
    study = architecture_study(model_folders[name], name, controls={"permuted_weights": False})
    sampler = load_sampler(study)
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
def test_activations_of_each_architecture_equal_its_modules_on_the_same_input(model_folders, name):
    """The module's own forward on a recorded input, its image tokens laid out by a slow loop."""
    study = architecture_study(model_folders[name], name, controls={"permuted_weights": False})
    sampler = load_sampler(study)
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


def test_flux_unpack_reverses_pack(model_folders):
    architecture = detect_architecture(model_folders["flux"])
    latents = torch.arange(2 * 4 * 64.0).reshape(2, 4, 8, 8)
    packed = architecture.pack(latents)
    assert packed.shape == (2, 16, 16)
    # token (row 1, column 2) holds the 2 x 2 latents from (2, 4), channel by channel
    expected = [latents[0, c, 2 + i, 4 + j] for c in range(4) for i in range(2) for j in range(2)]
    assert packed[0, 1 * 4 + 2].tolist() == [float(v) for v in expected]
    torch.testing.assert_close(architecture.unpack(packed), latents)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_whole_study_of_an_architecture(model_folders, name, tmp_path):
    study = architecture_study(
        model_folders[name],
        name,
        prompts={"items": [f"a ball {letter}" for letter in "abcdefgh"]},
        labels={"shading": "retinex"},
        capture={"layers": ["self-attention", "vae"]},
    )
    run = carry_out(study, str(tmp_path))
    summary = build_report(run, {})
    assert summary.layers == len(plan_study(study).layers)
    assert "vae.decoder.mid_block.attentions.0" in run.layers
    assert summary.properties["shading"].best.score.mean is not None


MEAN, STD = [0.3, -0.2, 0.1, 0.5], [0.5, 1.5, 2.0, 0.8]
VAE, UNET, SCHEDULER = "vae/config.json", "unet/config.json", "scheduler/scheduler_config.json"
EDITS = [  # family, file, keys, the key that is refused or None
    ("sdxl", VAE, {"latents_mean": MEAN, "latents_std": STD, "scaling_factor": 0.8}, None),
    ("sdxl", VAE, {"latents_mean": MEAN}, None),
    ("sdxl", VAE, {"latents_mean": MEAN[:3], "latents_std": STD}, "latents_mean"),
    ("sdxl", VAE, {"latents_mean": MEAN, "latents_std": [*STD[:3], float("nan")]}, "latents_std"),
    ("sdxl", VAE, {"latents_mean": [True, *MEAN[1:]], "latents_std": STD}, "latents_mean"),
    ("sdxl", VAE, {"shift_factor": 0.4, "force_upcast": True}, None),
    ("sd1", VAE, {"shift_factor": 0.4, "latents_mean": MEAN, "latents_std": STD}, None),
    ("sd1", VAE, {"scaling_factor": 0}, "scaling_factor"),
    ("sd1", VAE, {"_class_name": "AutoencoderTiny"}, "_class_name"),
    ("pixart", VAE, {"shift_factor": 0.4, "scaling_factor": 0.3}, None),
    ("sd3", VAE, {"shift_factor": 0.4, "latents_mean": MEAN, "latents_std": STD}, None),
    ("sd3", VAE, {"shift_factor": None}, "shift_factor"),
    ("flux", VAE, {"shift_factor": -0.4, "scaling_factor": 0.3}, None),
    ("flux", VAE, {"shift_factor": None}, "shift_factor"),
    ("sd1", SCHEDULER, {"steps_offset": 0}, None),
    ("sd1", SCHEDULER, {"skip_prk_steps": False}, "skip_prk_steps"),
    ("sd2", SCHEDULER, {"steps_offset": 0, "clip_sample": True}, None),
    ("sdxl", SCHEDULER, {"clip_sample": True, "clip_sample_range": 0.5}, None),
    ("sdxl", SCHEDULER, {"clip_sample": None, "set_alpha_to_one": False}, None),
    ("pixart", SCHEDULER, {"thresholding": True, "prediction_type": "sample"}, None),
    ("sd3", SCHEDULER, {"use_dynamic_shifting": True}, None),
    ("sd3", SCHEDULER, {"stochastic_sampling": True}, "stochastic_sampling"),
    ("flux", SCHEDULER, {"use_karras_sigmas": True, "shift_terminal": 0.1}, None),
    ("sd1", UNET, {"center_input_sample": True, "sample_size": [8, 12]}, None),
    ("sd1", UNET, {"class_embed_type": "identity"}, "class_labels"),
    ("sd1", UNET, {"sample_size": None}, "sample_size"),
]
OWN_SCHEDULER = {"sd1": "pndm", "sd3": "flow", "flux": "flow"}


@pytest.mark.parametrize(("name", "file", "keys", "refused"), EDITS)
def test_images_for_any_config_equal_those_of_the_familys_pipeline_or_are_refused(
    model_folders, tmp_path, name, file, keys, refused
):
    folder = tmp_path / name
    shutil.copytree(model_folders[name], folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | keys))
    study = architecture_study(
        folder,
        name,
        sampling={"scheduler": OWN_SCHEDULER.get(name, "ddim")},
        controls={"permuted_weights": False},
    )
    if refused is not None:
        with pytest.raises(UserError, match=f"{refused}.*Fix"):
            plan_study(study)
        return
    plan = plan_study(study)
    samples = make_samples(study)[:2]
    made = generated(load_sampler(study), samples)
    architecture = detect_architecture(folder)
    pipeline = architecture.load_pipeline(folder)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompt=[s.prompt for s in samples],
        num_inference_steps=3,
        generator=[torch.Generator().manual_seed(s.seed) for s in samples],
        output_type="np",
        **architecture.arguments(2.0, None),
    ).images
    assert np.abs(made.image.astype(int) - np.rint(images * 255)).max() <= 1
    assert made.timestep == pytest.approx(plan.steps)
    assert made.timestep == pytest.approx([float(t) for t in pipeline.scheduler.timesteps])


@pytest.mark.parametrize("name", ["sdxl", "sd3", "sd1"])
def test_normalise_is_the_inverse_of_denormalise(model_folders, name):
    architecture = detect_architecture(model_folders[name])
    architecture.vae |= {"latents_mean": MEAN, "latents_std": STD, "shift_factor": 0.4}
    latents = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    there = architecture.denormalise(latents)
    torch.testing.assert_close(architecture.normalise(there), latents)
    expected = {  # as each family's pipeline writes it, with the tiny VAE's scaling factor of 0.5
        "sdxl": latents * torch.tensor(STD).view(1, 4, 1, 1) / 0.5
        + torch.tensor(MEAN).view(1, 4, 1, 1),
        "sd3": latents / 0.5 + 0.4,
        "sd1": latents / 0.5,
    }
    torch.testing.assert_close(there, expected[name])


@pytest.mark.parametrize("upcast", [True, False])
def test_vae_of_sdxl_in_float16_computes_in_float32_where_its_config_says_so(upcast):
    pipeline = tiny_models.stable_diffusion_xl()
    pipeline.vae.register_to_config(force_upcast=upcast)
    with torch.no_grad():
        for part in (pipeline.vae.encoder, pipeline.vae.decoder):
            # Before the normalisation that follows, the values exceed the range of float16.
            part.mid_block.resnets[0].conv1.weight.mul_(1e5)
    vae = pipeline.vae.half()
    weights = {name: value.clone() for name, value in vae.state_dict().items()}
    exact = copy.deepcopy(vae).float()
    architecture = architecture_of(pipeline)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator).half()
    images = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        found = architecture.decode(vae, latents), architecture.encode(vae, images)
        factor = vae.config.scaling_factor
        expected = (
            exact.decode(latents.float() / factor).sample,
            exact.encode(images).latent_dist.mode() * factor,
        )
    for one, other in zip(found, expected, strict=True):
        assert bool(torch.isfinite(other).all())
        assert torch.equal(one, other) is upcast
        assert bool(torch.isfinite(one).all()) is upcast
    for name, value in vae.state_dict().items():
        assert value.dtype == torch.float16
        assert torch.equal(value, weights[name])
