"""Attention maps over text and image tokens against a softmax written out by hand."""

import numpy as np
import pytest
import torch
from model_helpers import LAYER, architecture_study, call_unet, load_sampler
from run_helpers import generated

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.capture import ActivationCapture
from ldmprobe_core.models.layers import named_points
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.samples import make_samples

CROSS = LAYER.replace("attn1", "attn2")


def test_word_maps_equal_the_mean_softmax_over_heads_of_the_conditional_half(unet, architecture):
    attention, points = unet.get_submodule(CROSS), named_points(unet)
    inputs = {}
    hook = attention.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.update(kwargs, image=args[0]), with_kwargs=True
    )
    name = f"{CROSS}@words"
    with torch.no_grad(), ActivationCapture({name: points[name]}, architecture, 2, unet) as capture:
        call_unet(unet, 4)
        values = capture.pop_activations(2)[name]
    hook.remove()
    assert values.shape == (2, 4, 4, 24)
    with torch.no_grad():
        query = inputs["image"].double() @ attention.to_q.weight.double().T
        key = inputs["encoder_hidden_states"].double() @ attention.to_k.weight.double().T
        maps = [
            (query[..., part] @ key[..., part].transpose(1, 2) / 8**0.5).softmax(-1)
            for part in (slice(0, 8), slice(8, 16))
        ]
    expected = ((maps[0] + maps[1]) / 2)[2:].unflatten(1, (4, 4))
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


@pytest.mark.parametrize("fused", [False, True])
def test_token_maps_equal_the_mean_softmax_over_heads_of_the_conditional_half(
    unet, architecture, fused
):
    if fused:
        with torch.no_grad():
            unet.fuse_qkv_projections()
    attention, points = unet.get_submodule(LAYER), named_points(unet)
    inputs = {}
    hook = attention.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.update(image=args[0]), with_kwargs=True
    )
    name = f"{LAYER}@tokens"
    with torch.no_grad(), ActivationCapture({name: points[name]}, architecture, 2, unet) as capture:
        call_unet(unet, 4)
        values = capture.pop_activations(2)[name]
    hook.remove()
    image = inputs["image"].detach().double().numpy()[2:]
    weights = [m.weight.detach().double().numpy() for m in (attention.to_q, attention.to_k)]
    expected = np.zeros((2, 16, 16))
    for sample, query, key in np.ndindex(expected.shape):
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            q = weights[0][part] @ image[sample, query]
            dots = [q @ (weights[1][part] @ token) / 8**0.5 for token in image[sample]]
            share = np.exp(dots[key]) / np.exp(dots).sum()
            expected[sample, query, key] += share / 2
    np.testing.assert_allclose(values, expected.reshape(2, 4, 4, 16), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart"])
def test_token_maps_have_a_channel_for_each_image_token_and_leave_images_alone(model_folders, name):
    images = []
    for layer in ("self-attention", "self-attention@tokens"):
        study = architecture_study(model_folders[name], name, capture={"layers": [layer]})
        batch = generated(load_sampler(study), make_samples(study)[:2])
        images.append(batch.image)
    np.testing.assert_array_equal(*images)
    shapes = plan_study(study).shapes
    maps = {n: v for n, v in batch.activations.values.items() if n.endswith("@tokens")}
    assert maps
    for layer, values in maps.items():
        assert values.shape[2:] == shapes[layer]
        assert values.shape[-1] == values.shape[2] * values.shape[3]
        np.testing.assert_allclose(values.astype(float).sum(-1), 1, atol=5e-3)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_token_maps_of_joint_attention_are_refused(model_folders, name):
    study = architecture_study(model_folders[name], name, capture={"layers": ["*attn*@tokens"]})
    with pytest.raises(UserError, match="@tokens of a self-attention layer without normalised"):
        plan_study(study)


@pytest.mark.parametrize(("name", "tokens"), [("sd1", 24), ("sdxl", 24), ("pixart", 120)])
def test_word_maps_have_a_channel_for_each_token_and_leave_images_alone(
    model_folders, name, tokens
):
    """The 120 tokens are PixArt's padded prompt, whose padding is masked."""
    images = []
    for layer in ("cross-attention", "cross-attention@words"):
        study = architecture_study(model_folders[name], name, capture={"layers": [layer]})
        batch = generated(load_sampler(study), make_samples(study)[:2])
        images.append(batch.image)
    np.testing.assert_array_equal(*images)
    shapes = plan_study(study).shapes
    maps = {n: v for n, v in batch.activations.values.items() if n.endswith("@words")}
    assert maps
    for layer, values in maps.items():
        assert values.shape[2:] == shapes[layer]
        assert values.shape[-1] == tokens
        np.testing.assert_allclose(values.astype(float).sum(-1), 1, atol=5e-3)
    if name == "pixart":
        # "a ball a" in letters, and the end of the text: all other tokens are padding.
        assert (values[..., :9] > 0).any()
        assert (values[..., 20:] == 0).all()


@pytest.mark.parametrize("layer", ["self-attention@words", "*.attn1@words"])
def test_word_maps_of_self_attention_are_refused(tiny_model, layer):
    study = architecture_study(tiny_model, "sd1", capture={"layers": [layer]})
    with pytest.raises(UserError, match=r"@words of a cross-attention layer"):
        plan_study(study)
