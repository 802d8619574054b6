"""Generation against the pipeline's own output; guidance; precision."""

import numpy as np
import pytest
import tiny_models
import torch
from model_helpers import architecture_study, load_sampler
from run_helpers import generated

from ldmprobe_core.study.layers import CLEAN_PIXELS
from ldmprobe_core.study.samples import make_samples


@pytest.fixture
def sampler(tiny_study):
    return load_sampler(tiny_study(sampling={"scheduler": "ddim"}))


def test_sampled_images_equal_the_pipelines_own(sampler):
    samples = make_samples(sampler.study)[:3]
    made = generated(sampler, samples)
    images = sampler.pipeline(
        prompt=[s.prompt for s in samples],
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(s.seed) for s in samples],
        output_type="np",
    ).images
    expected = (images * 255).round().astype(np.uint8)
    assert np.abs(made.image.astype(int) - expected).max() <= 1  # decoded in other batches
    np.testing.assert_array_equal(made.image, made.trajectory[:, -1])
    assert made.trajectory.shape == made.clean.shape == (3, 3, 16, 16, 3)
    scheduler = sampler.pipeline.scheduler
    assert made.timestep == [float(t) for t in scheduler.timesteps]
    text, _ = sampler.pipeline.encode_prompt([s.prompt for s in samples], "cpu", 1, False)
    expected = text.mean(1).detach().numpy()
    np.testing.assert_allclose(made.prompt_embedding, expected, atol=1e-6)


def test_sampled_activations_and_clean_images_are_those_of_each_steps_call(sampler):
    """The same steps by hand: encode the prompt, call the denoiser, guide, step, decode."""
    samples = make_samples(sampler.study)[:2]
    made = generated(sampler, samples)
    pipeline, layer = sampler.pipeline, sampler.layers[0]
    seen, clean = [], []
    module = dict(pipeline.unet.named_modules())[layer]
    hook = module.register_forward_hook(lambda m, i, output: seen.append(output.clone()))
    with torch.no_grad():
        words, nothing = (
            pipeline.text_encoder(
                pipeline.tokenizer(
                    texts, padding="max_length", max_length=24, return_tensors="pt"
                ).input_ids
            ).last_hidden_state
            for texts in ([s.prompt for s in samples], ["", ""])
        )
        latents = torch.cat(
            [
                torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s.seed))
                for s in samples
            ]
        )
        pipeline.scheduler.set_timesteps(3)
        for t in pipeline.scheduler.timesteps:
            both = pipeline.unet(torch.cat([latents] * 2), t, torch.cat([nothing, words])).sample
            free, bound = both.chunk(2)
            guided = free + 2.0 * (bound - free)
            step = pipeline.scheduler.step(guided, t, latents)
            latents = step.prev_sample
            scaled = step.pred_original_sample / pipeline.vae.config.scaling_factor
            clean.append(pipeline.vae.decode(scaled).sample.movedim(1, -1))
    hook.remove()
    images = (torch.stack(clean, 1) * 0.5 + 0.5).clamp(0, 1).numpy() * 255
    assert np.abs(made.clean - images).max() <= 2  # rounded, and in another order of sums
    assert np.abs(made.trajectory[:, 0] - images[:, 0]).max() > 10  # not the latents after it
    expected = torch.stack([output[2:] for output in seen], 1).numpy()
    found = made.activations.values[layer]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=2e-3, atol=2e-3)


def test_permuted_denoiser_gets_the_inputs_of_the_denoiser(sampler):
    """With its permutation undone, the twin must show what the denoiser shows."""
    sampler.permuted_denoiser.load_state_dict(sampler.pipeline.unet.state_dict())
    made = generated(sampler, make_samples(sampler.study)[:2])
    for layer in sampler.layers:
        np.testing.assert_allclose(
            made.permuted.values[layer], made.activations.values[layer], rtol=5e-3, atol=5e-3
        )


def test_permuted_denoiser_ends_after_the_last_captured_layer(sampler):
    """Its result is not used; its activations are those of complete passes."""
    twin, layer, inputs, ends, seen = sampler.permuted_denoiser, sampler.layers[-1], [], [], []
    before = twin.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
    )
    twin.conv_out.register_forward_hook(lambda *_: ends.append(1))
    values = generated(sampler, make_samples(sampler.study)[:2]).permuted.values[layer]
    assert (len(inputs), len(ends)) == (sampler.study.sampling.steps, 0)
    before.remove()
    module = dict(twin.named_modules())[layer]
    module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        for args, kwargs in inputs:
            twin(*args, **kwargs)
    assert len(seen) == len(ends) == len(inputs)
    for step, output in enumerate(seen):
        expected = output.reshape(values[:, step].shape).to(torch.float16).numpy()
        np.testing.assert_array_equal(values[:, step], expected)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(sampler):
    samples = make_samples(sampler.study)
    together = generated(sampler, samples[:3]).image
    apart = generated(sampler, samples[2:4]).image
    assert np.abs(together[2].astype(int) - apart[0]).max() <= 1
    assert np.abs(together[1].astype(int) - together[2]).max() > 1


def test_sampling_the_same_batch_gives_the_same_bytes(sampler):
    samples = make_samples(sampler.study)[:2]
    one, two = generated(sampler, samples), generated(sampler, samples)
    np.testing.assert_array_equal(one.trajectory, two.trajectory)
    for layer in sampler.layers:
        np.testing.assert_array_equal(one.activations.values[layer], two.activations.values[layer])


def test_sampling_without_guidance_has_one_copy_of_the_batch(tiny_study):
    study = tiny_study(sampling={"guidance": 1.0}, controls={"permuted_weights": False})
    made = generated(load_sampler(study), make_samples(study)[:2])
    assert made.permuted is None
    assert next(iter(made.activations.values.values())).shape[:2] == (2, 3)


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_guidance_keeps_the_conditional_half(model_folders, name):
    """At the first step the latents are the same with and without guidance: so is that half."""
    guided = architecture_study(model_folders[name], name, controls={"permuted_weights": False})
    free = architecture_study(
        model_folders[name], name, controls={"permuted_weights": False}, sampling={"guidance": 1.0}
    )
    samples = make_samples(guided)[:2]
    a, b = (generated(load_sampler(study), samples) for study in (guided, free))
    np.testing.assert_array_equal(
        a.activations.values["latents"][:, 0], b.activations.values["latents"][:, 0]
    )
    for layer in load_sampler(guided).layers:
        values = a.activations.values[layer]
        same = np.allclose(values[:, 0], b.activations.values[layer][:, 0], rtol=1e-2, atol=1e-3)
        assert same != (name == "flux")  # there guidance is an input of the denoiser


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_negative_prompts_change_the_image_and_not_the_conditional_half(model_folders, name):
    plain = architecture_study(
        model_folders[name],
        name,
        controls={"permuted_weights": False},
        prompts={"negative": "a red car"},
    )
    other = architecture_study(
        model_folders[name],
        name,
        controls={"permuted_weights": False},
        prompts={"negative": "a blue ring"},
    )
    samples = make_samples(plain)[:2]
    a, b = (generated(load_sampler(study), samples) for study in (plain, other))
    assert (a.activations.nonfinite[next(iter(a.activations.nonfinite))] == 0).all()
    for layer, values in a.activations.values.items():
        assert values.shape[1] == 3
        # The predicted clean image follows the guided prediction, so it changes.
        if layer != CLEAN_PIXELS:
            np.testing.assert_allclose(
                values[:, 0], b.activations.values[layer][:, 0], rtol=1e-2, atol=1e-3
            )
    assert (a.trajectory != b.trajectory).any() or (a.clean != b.clean).any()


def test_flux_with_a_negative_prompt_makes_two_calls_a_step(model_folders):
    study = architecture_study(model_folders["flux"], "flux", prompts={"negative": "a car"})
    sampler = load_sampler(study)
    assert (sampler.guidance.batch_copies, sampler.guidance.calls_per_step) == (1, 2)
    seen = []
    sampler.denoiser.register_forward_pre_hook(
        lambda m, a, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    generated(sampler, make_samples(study)[:2])
    assert len(seen) == 6
    assert not torch.equal(seen[0], seen[1])


def test_guidance_that_was_not_declared_is_an_error(model_folders):
    study = architecture_study(model_folders["sd1"], "sd1")
    sampler = load_sampler(study)
    sampler.scale = 1.0  # the pipeline will now send one half, where two were declared
    with pytest.raises(RuntimeError, match="Architecture declares"):
        generated(sampler, make_samples(study)[:2])
    flux = load_sampler(
        architecture_study(model_folders["flux"], "flux", prompts={"negative": "a car"})
    )
    flux.study = architecture_study(model_folders["flux"], "flux")
    with pytest.raises(RuntimeError, match="called 1 times in one step, not 2"):
        generated(flux, make_samples(flux.study)[:2])


def test_compiled_denoiser_is_an_error_that_names_the_layers(model_folders):
    """A compiled forward leaves no trace for hooks on what is inside; simulated, as a compiler
    would do it, by a forward of its own."""
    study = architecture_study(model_folders["sd1"], "sd1", controls={"permuted_weights": False})
    sampler = load_sampler(study)
    module = dict(sampler.denoiser.named_modules())[sampler.layers[0]]
    module.__class__ = type("Compiled", (type(module),), {"__call__": type(module).forward})
    with pytest.raises(RuntimeError, match=rf"no activations came from {sampler.layers[0]}"):
        generated(sampler, make_samples(study)[:2])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sampling_in_other_dtypes_is_close_to_float32(model_folders, dtype):
    whole, half = (
        architecture_study(
            model_folders["sd1"], "sd1", model={"dtype": d, "attention_slicing": d != "float32"}
        )
        for d in ("float32", dtype)
    )
    samples = make_samples(whole)[:2]
    a, b = (generated(load_sampler(study), samples) for study in (whole, half))
    layer = next(iter(a.activations.values))
    np.testing.assert_allclose(
        a.activations.values[layer][:, 0], b.activations.values[layer][:, 0], atol=0.05
    )
    assert load_sampler(half).denoiser.dtype == getattr(torch, dtype)
    assert load_sampler(half).pipeline.vae.dtype == torch.float32
