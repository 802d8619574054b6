"""Families with language models as encoders, against their own pipelines and plain hooks."""

import json
import shutil

import diffusers
import further_models
import numpy as np
import pytest
import tiny_models
import torch
from model_helpers import load_sampler
from own_pipelines import images_of
from PIL import Image
from run_helpers import generated

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.editor import sample_edited
from ldmprobe_core.models.architectures.registry import architecture_of
from ldmprobe_core.models.layers import named_points
from ldmprobe_core.models.token_grid import decoded_images, mean_embedding
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import make_samples

FAMILIES = {  # builder, presets, (y, x, channels) of their layers, image and latents
    "sana": (
        further_models.sana,
        ("self-attention", "cross-attention", "blocks"),
        ((8, 8, 16), (32, 32), (8, 8, 4)),
    ),
    "qwen_image": (
        further_models.qwen_image,
        ("self-attention", "blocks"),
        ((4, 4, 32), (16, 16), (8, 8, 4)),
    ),
    "flux_2": (
        further_models.flux_2,
        ("self-attention", "blocks"),
        ((4, 4, 32), (16, 16), (8, 8, 4)),
    ),
    "flux_2_klein": (
        further_models.flux_2_klein,
        ("self-attention", "blocks"),
        ((4, 4, 32), (16, 16), (8, 8, 4)),
    ),
}
NO_NEGATIVE = ("flux_2", "flux_2_klein")
GUIDANCE = 2.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("further")
    return {name: further_models.write(row[0], root / name) for name, row in FAMILIES.items()}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, folders):
    """Study of all presets; its plan, its sampler, and what the sampler generates."""
    _, presets, shapes = FAMILIES[request.param]
    study = parse_study(
        {
            "model": {"source": str(folders[request.param])},
            "prompts": {
                "items": ["ball", "cone", "cube"],
                "negative": None if request.param in NO_NEGATIVE else "mug",
            },
            "sampling": {"threads": 1, "steps": 3, "guidance": GUIDANCE},
            "capture": {"layers": list(presets)},
        }
    )
    sampler = load_sampler(study)
    made = generated(sampler, make_samples(study)[:2])
    return request.param, study, plan_study(study), sampler, made, shapes


def test_no_maps_of_joint_or_linear_attention(family):
    """Their maps are not the softmax of the image tokens' queries and keys."""
    names = named_points(family[3].denoiser)
    assert any(name.endswith("@head0") for name in names)
    assert not any(name.endswith("@tokens") for name in names)


def test_plan_of_a_family(family):
    _, _, plan, _, made, (shape, size, latents) = family
    assert not plan.missing
    assert {plan.shapes[layer] for layer in plan.layers} == {shape}
    assert (plan.size, plan.shapes["latents"]) == (size, latents)
    assert made.timestep == pytest.approx(plan.steps)
    assert made.prompt_embedding.shape == (2, plan.text_channels)


def test_images_and_activations_of_a_family_equal_its_pipelines(family, folders):
    """The pipeline alone, with a plain hook on each layer; the conditional half is the last."""
    name, study, plan, sampler, made, _ = family
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders[name])
    pipe.set_progress_bar_config(disable=True)
    outputs = {layer: [] for layer in plan.layers}
    for layer, calls in outputs.items():
        module = pipe.transformer.get_submodule(layer)
        module.register_forward_hook(lambda m, inputs, output, calls=calls: calls.append(output))
    samples = make_samples(study)[:2]
    images = images_of(
        pipe,
        [sample.prompt for sample in samples],
        [sample.seed for sample in samples],
        num_inference_steps=3,
        **sampler.architecture.arguments(GUIDANCE, None if name in NO_NEGATIVE else ["mug", "mug"]),
    )
    np.testing.assert_array_equal(made.image, images)
    for layer, calls in outputs.items():
        values = made.activations.values[layer]
        y, x = values.shape[2:4]
        for step in range(3):
            tokens = conditional_tokens(name, calls, step, is_block=not layer.endswith("attn"))
            expected = tokens.reshape(2, y, x, -1).half().numpy()
            np.testing.assert_array_equal(values[:, step], expected)


def conditional_tokens(name, calls, step, is_block):
    """Image tokens (sample, token, channel) of the call with the prompts."""
    if name == "qwen_image":  # conditional, then unconditional call; blocks return the text first
        return calls[2 * step][1 if is_block else 0]
    if name.startswith("flux_2"):
        output = calls[2 * step if name == "flux_2_klein" else step]
        if isinstance(output, tuple):  # blocks return the text first, their attention the image
            return output[1 if is_block else 0]
        return output[:, -16:]  # single blocks: text tokens, then image tokens
    return calls[step][-2:]


def klein_study(folder, **parts):
    content = {
        "model": {"source": str(folder)},
        "prompts": {"items": ["ball", "cone", "cube"]},
        "sampling": {"threads": 1, "steps": 3, "guidance": GUIDANCE},
        "capture": {"layers": ["blocks"]},
    }
    return parse_study({**content, **parts})


def test_source_images_of_flux_2_are_encoded_and_noised_as_its_pipeline_has_them(folders, tmp_path):
    """Latents by the pipeline's own encoding, mixed with noise by the sigma of each step."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    images = {"folder": str(tmp_path)}
    study = klein_study(folders["flux_2_klein"], source="images", images=images, prompts={})
    sampler = load_sampler(study)
    pipe, inputs = sampler.pipeline, []
    pipe.transformer.register_forward_pre_hook(
        lambda m, args, kwargs: inputs.append(kwargs["hidden_states"]), with_kwargs=True
    )
    samples = make_samples(study)[:2]
    generated(sampler, samples, pictures[:2])
    scaled = torch.from_numpy(pictures[:2]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        clean = pipe._pack_latents(pipe._encode_vae_image(scaled, None))
    noise = [
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(sample.seed))
        for sample in samples
    ]
    noise = pipe._pack_latents(pipe._patchify_latents(torch.cat(noise)))
    assert len(inputs) == 3
    for found, sigma in zip(inputs, pipe.scheduler.sigmas, strict=False):
        torch.testing.assert_close(found, sigma * noise + (1 - sigma) * clean)


@pytest.mark.parametrize("name", NO_NEGATIVE)
def test_generation_for_edits_gives_the_images_of_a_run_of_flux_2(folders, name):
    """The two pipelines return latents at different scales when they do not decode."""
    study = klein_study(folders[name], sampling={"threads": 1, "steps": 2, "guidance": GUIDANCE})
    sampler, samples = load_sampler(study), make_samples(study)[:1]
    made = generated(sampler, samples)
    np.testing.assert_array_equal(sample_edited(sampler, samples, None), made.image)


def test_distilled_flux_2_klein_is_called_once_a_step_without_guidance(folders, tmp_path):
    folder = shutil.copytree(folders["flux_2_klein"], tmp_path / "distilled")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "is_distilled": True}))
    study = klein_study(folder, sampling={"threads": 1, "steps": 2, "guidance": GUIDANCE})
    sampler, calls = load_sampler(study), []
    sampler.denoiser.register_forward_hook(lambda *_: calls.append(1))
    made = generated(sampler, make_samples(study)[:1])
    assert len(calls) == made.image.shape[0] * 2
    assert architecture_of(sampler.pipeline).guidance(GUIDANCE, None).calls_per_step == 1
    (note,) = (note for note in plan_study(study).notes if note.startswith("sampling"))
    assert note == (
        "sampling.guidance has no effect (2): the transformer takes no guidance scale, and its "
        "pipeline samples without classifier-free guidance"
    )


@pytest.mark.parametrize("name", NO_NEGATIVE)
def test_negative_prompts_of_flux_2_are_refused(folders, name):
    study = klein_study(folders[name], prompts={"items": ["a", "b", "c"], "negative": "mug"})
    with pytest.raises(UserError, match=r"prompts\.negative: a Flux2.*takes no negative.*Fix: "):
        plan_study(study)


@pytest.mark.parametrize("name", ["sana", "pixart"])
def test_prompt_embedding_is_the_mean_of_the_tokens_that_the_denoiser_reads(
    folders, tmp_path, name
):
    """Their pipelines fill prompts up to a fixed length, and mask these tokens."""
    folder = folders[name] if name in folders else tiny_models.write(name, tmp_path / name)
    study = parse_study(
        {
            "model": {"source": str(folder)},
            "prompts": {"items": ["a ball", "a very large cone", "cube"]},
            "sampling": {"threads": 1, "steps": 1, "guidance": GUIDANCE},
            "capture": {"layers": ["blocks"]},
        }
    )
    sampler, samples = load_sampler(study), make_samples(study)[:2]
    seen = []
    sampler.pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    made = generated(sampler, samples)
    text, mask = (seen[0][f"encoder_{part}"][-2:] for part in ("hidden_states", "attention_mask"))
    assert not mask.bool().all()
    for found, tokens, kept in zip(made.prompt_embedding, text, mask, strict=True):
        read = [token for token, one in zip(tokens.tolist(), kept.tolist(), strict=True) if one]
        np.testing.assert_allclose(found, np.mean(read, axis=0), atol=1e-5)
        assert np.abs(found - tokens.mean(0).numpy()).max() > 1e-3


def test_mean_embedding_leaves_out_tokens_that_fill_a_prompt_up():
    text = torch.tensor([[[2.0], [4.0], [0.0]], [[1.0], [2.0], [6.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert mean_embedding(text, mask).tolist() == [[3.0], [3.0]]
    assert mean_embedding(text, None).tolist() == [[2.0], [3.0]]


def test_layers_of_a_video_autoencoder_are_refused(folders):
    study = parse_study(
        {"model": {"source": str(folders["qwen_image"])}, "capture": {"layers": ["vae"]}}
    )
    with pytest.raises(UserError, match=r"capture\.layers: 'vae' matches no module.*Fix: "):
        plan_study(study)


def test_encode_and_decode_of_a_family_are_those_of_its_autoencoder(family):
    """Images are encoded to the denoiser's latents, and these are decoded as the pipeline does."""
    _, _, plan, sampler, _, _ = family
    images = torch.rand(2, 3, *plan.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    architecture, vae = sampler.architecture, sampler.pipeline.vae
    with torch.no_grad():
        latents = architecture.encode(vae, images)
        assert latents.shape == (2, plan.shapes["latents"][2], *plan.shapes["latents"][:2])
        packed = architecture.pack(latents)
        torch.testing.assert_close(architecture.unpack(packed), latents)
        decoded = architecture.decode(vae, latents)
        back = architecture.denormalise(architecture.normalise(latents))
    torch.testing.assert_close(back, latents)
    assert decoded_images(decoded).shape == (2, *plan.size, 3)
