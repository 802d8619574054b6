"""Settings that a model's architecture cannot use, or has no use for."""

import json
import shutil

import pytest
import tiny_models
import torch
from model_helpers import architecture_study, load_sampler
from run_helpers import generated

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.architectures.settings import check_settings
from ldmprobe_core.study.samples import make_samples


def checked(folder, name, **parts):
    return check_settings(detect_architecture(folder), architecture_study(folder, name, **parts))


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_attention_slicing_is_refused_where_the_denoiser_has_none(model_folders, name):
    if name in ("sd1", "sd2", "sdxl"):
        assert checked(model_folders[name], name, model={"attention_slicing": True}) == ()
        return
    with pytest.raises(
        UserError,
        match=r"model\.attention_slicing is true.* Fix: set model.attention_slicing to false",
    ):
        checked(model_folders[name], name, model={"attention_slicing": True})
    assert checked(model_folders[name], name) == ()


def test_a_unet_that_predicts_a_variance_too_is_refused(model_folders, tmp_path):
    shutil.copytree(model_folders["sd1"], tmp_path / "m")
    path = tmp_path / "m/unet/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"out_channels": 8}))
    with pytest.raises(UserError, match=r"predicts 8 channels .* for latents of 4\. Fix: "):
        checked(tmp_path / "m", "sd1")


def write_consistency_model(folder):
    """A UNet that takes the guidance scale as an input, as latent consistency models do."""
    torch.manual_seed(0)
    pipeline = tiny_models.stable_diffusion_1()
    pipeline.register_modules(unet=tiny_models.unet(time_cond_proj_dim=8))
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.mark.parametrize("batch", [1, 2])
def test_guidance_that_is_an_input_of_the_unet_takes_one_call_and_affects_it(tmp_path, batch):
    folder = write_consistency_model(tmp_path / "m")
    images, activations = [], []
    for scale in (7.5, 2.0):
        study = architecture_study(
            folder,
            "sd1",
            sampling={"guidance": scale, "batch": batch},
            controls={"permuted_weights": False},
        )
        assert check_settings(detect_architecture(folder), study) == ()
        sampler, batch_sizes = load_sampler(study), []
        sampler.denoiser.register_forward_pre_hook(
            lambda m, args, kwargs, sizes=batch_sizes: sizes.append(len(kwargs["timestep_cond"])),
            with_kwargs=True,
        )
        made = generated(sampler, make_samples(study)[:batch])
        assert batch_sizes == [batch] * 3
        images.append(made.image)
        activations.append(made.activations.values[sampler.layers[0]])
    assert not (activations[0] == activations[1]).all()
    with pytest.raises(UserError, match=r"prompts\.negative: .*Fix: leave prompts.negative out"):
        checked(folder, "sd1", prompts={"negative": "a blue ring"})


def test_undeclared_guidance_is_an_error_with_a_batch_of_one_too(tmp_path, model_folders):
    study = architecture_study(model_folders["sd1"], "sd1", sampling={"batch": 1})
    sampler = load_sampler(study)
    sampler.scale = 1.0  # the pipeline sends one copy, and two are declared
    with pytest.raises(RuntimeError, match="batch size is 1, not 1 samples x 2 copies"):
        generated(sampler, make_samples(study)[:1])


def test_guidance_without_effect_is_a_note(tmp_path):
    folder = tiny_models.write("flux", tmp_path / "flux")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"guidance_embeds": False}))
    (note,) = checked(folder, "flux")
    assert note.startswith("sampling.guidance has no effect (2)")
    assert checked(folder, "flux", prompts={"negative": "a car"}) == ()
    assert checked(folder, "flux", sampling={"guidance": 1.0}) == ()


def test_one_step_is_refused_where_the_pipeline_skips_the_schedulers_step(model_folders):
    with pytest.raises(
        UserError, match=r"sampling\.steps is 1, .*\. Fix: set sampling\.steps to 2"
    ):
        checked(model_folders["pixart"], "pixart", sampling={"steps": 1})
    assert checked(model_folders["sdxl"], "sdxl", sampling={"steps": 1}) == ()


def test_components_with_different_latents_are_refused(model_folders):
    architecture = detect_architecture(model_folders["sd1"])
    architecture.config["in_channels"] = 9
    with pytest.raises(UserError, match="9 channels, and the VAE has 4"):
        check_settings(architecture, architecture_study(model_folders["sd1"], "sd1"))


def test_image_sizes_that_the_pipeline_does_not_take_are_refused(model_folders):
    architecture = detect_architecture(model_folders["sd1"])
    architecture.config["sample_size"] = [8, 10]  # latents; the tiny VAE doubles them
    with pytest.raises(UserError, match=r"16 x 20 pixels, .* multiples of 8\. Fix"):
        check_settings(architecture, architecture_study(model_folders["sd1"], "sd1"))
