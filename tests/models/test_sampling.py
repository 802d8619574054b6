"""Generation against the pipeline's own output and the schedulers' own predictions."""

import numpy as np
import pytest
import torch
from run_helpers import generated
from tiny_models import write_tiny_model

from ldmprobe_core.models import loading, weights
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.models.schedulers import new_scheduler, predicted_clean
from ldmprobe_core.study.samples import make_samples

CPU = torch.device("cpu")


def load(study):
    architecture = detect_architecture(weights.model_folder(study.model))
    return PipelineSampler(loading.load_pipeline(study, CPU), architecture, study)


@pytest.fixture
def sampler(tiny_study):
    return load(tiny_study(sampling={"scheduler": "ddim"}))


def test_images_are_the_pipelines_own(sampler):
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


def test_activations_are_those_of_each_steps_call(sampler):
    """The same steps by hand: encode the prompt, call the denoiser, guide, step."""
    samples = make_samples(sampler.study)[:2]
    made = generated(sampler, samples)
    pipeline, layer = sampler.pipeline, sampler.layers[0]
    seen = []
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
                torch.randn(1, 4, 8, 8, sampler=torch.Generator().manual_seed(s.seed))
                for s in samples
            ]
        )
        pipeline.scheduler.set_timesteps(3)
        for t in pipeline.scheduler.timesteps:
            both = pipeline.unet(torch.cat([latents] * 2), t, torch.cat([nothing, words])).sample
            free, bound = both.chunk(2)
            guided = free + 2.0 * (bound - free)
            latents = pipeline.scheduler.step(guided, t, latents).prev_sample
    hook.remove()
    expected = torch.stack([output[2:] for output in seen], 1).numpy()
    found = made.activations.values[layer]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=2e-3, atol=2e-3)


def test_the_permuted_twin_sees_the_same_inputs(sampler):
    """With its permutation undone, the twin must show what the denoiser shows."""
    sampler.permuted_denoiser.load_state_dict(sampler.pipeline.unet.state_dict())
    made = generated(sampler, make_samples(sampler.study)[:2])
    for layer in sampler.layers:
        np.testing.assert_allclose(
            made.permuted.values[layer], made.activations.values[layer], rtol=5e-3, atol=5e-3
        )


def test_a_sample_depends_on_its_seed_not_on_its_neighbours(sampler):
    samples = make_samples(sampler.study)
    together = generated(sampler, samples[:3]).image
    apart = generated(sampler, samples[2:4]).image
    assert np.abs(together[2].astype(int) - apart[0]).max() <= 1
    assert np.abs(together[1].astype(int) - together[2]).max() > 1


def test_the_same_batch_gives_the_same_bytes(sampler):
    samples = make_samples(sampler.study)[:2]
    one, two = generated(sampler, samples), generated(sampler, samples)
    np.testing.assert_array_equal(one.trajectory, two.trajectory)
    for layer in sampler.layers:
        np.testing.assert_array_equal(one.activations.values[layer], two.activations.values[layer])


def test_without_guidance_there_is_one_half(tiny_study):
    study = tiny_study(sampling={"guidance": 1.0}, controls={"permuted_weights": False})
    made = generated(load(study), make_samples(study)[:2])
    assert made.permuted is None
    assert next(iter(made.activations.values.values())).shape[:2] == (2, 3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", ["ddim", "lms"])
def test_the_predicted_clean_image_is_the_schedulers(tmp_path, tiny_study, scheduler, prediction):
    folder = write_tiny_model(tmp_path / "model", prediction)
    own = new_scheduler(scheduler, detect_architecture(folder).scheduler)
    own.set_timesteps(5)
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, sampler=random) * own.init_noise_sigma
    for t in own.timesteps:
        output = torch.randn(2, 4, 8, 8, sampler=random)
        own.scale_model_input(latents, t)
        found = predicted_clean(own, output, t, latents)
        step = own.step(output, t, latents)
        torch.testing.assert_close(found, step.pred_original_sample, rtol=1e-4, atol=1e-4)
        latents = step.prev_sample
