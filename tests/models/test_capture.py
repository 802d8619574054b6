"""Captured activations against a forward pass written out by hand, and every way to go wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models import loading
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.capture import ActivationCapture
from ldmprobe_core.models.host_transfer import HostTransfer
from ldmprobe_core.models.layers import capturable_modules, layer_shapes, match_layers
from ldmprobe_core.models.loading import meta_modules, permute_weights
from ldmprobe_core.models.token_grid import Grid, to_grid

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture
def unet(tiny_model, tiny_study):
    return loading.load_pipeline(tiny_study(), torch.device("cpu")).unet


@pytest.fixture
def architecture(tiny_model):
    return detect_architecture(tiny_model)


@pytest.fixture
def watch(unet, architecture):
    """Captures named layers of the tiny denoiser."""

    def capture(layers, batch_copies):
        modules = dict(unet.named_modules())
        return ActivationCapture(
            {name: modules[name] for name in layers}, architecture, batch_copies, unet
        )

    return capture


def call(unet, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return unet(
        torch.randn(batch, 4, 8, 8, generator=generator),
        torch.tensor(500),
        torch.randn(batch, 24, 16, generator=generator),
    )


def test_self_attention_equals_softmax_of_queries_and_keys(unet, watch):
    """softmax(q k / sqrt(d)) v, written out head by head, on the module's own input."""
    attention = dict(unet.named_modules())[LAYER]
    seen = {}
    hook = attention.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    with torch.no_grad(), watch([LAYER], 2) as capture:
        call(unet, 6)
        values, bad = HostTransfer(capture.pop_activations(3)).result()[LAYER]
    hook.remove()
    x = seen["x"].double()
    channels = x.shape[-1]
    heads = attention.heads

    def project(layer, data):
        out = data @ layer.weight.double().T
        return out if layer.bias is None else out + layer.bias.double()

    expected = torch.zeros_like(x)
    with torch.no_grad():
        q, k, v = (project(getattr(attention, f"to_{name}"), x) for name in "qkv")
        size = channels // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weight = (q[..., part] @ k[..., part].transpose(1, 2) / size**0.5).softmax(-1)
            expected[..., part] = weight @ v[..., part]
        expected = project(attention.to_out[0], expected)
    conditional = expected[3:].reshape(3, 4, 4, channels).numpy()
    assert values.dtype == np.float16
    np.testing.assert_allclose(values, conditional, rtol=2e-3, atol=2e-3)
    assert bad.tolist() == [0, 0, 0]


def test_the_conditional_half_is_the_second(unet, watch):
    with torch.no_grad(), watch([LAYER], 2) as capture:
        call(unet, 4)
        pair = capture.pop_activations(2)[LAYER]
    with torch.no_grad(), watch([LAYER], 1) as capture:
        call(unet, 4)
        every = capture.pop_activations(4)[LAYER]
    np.testing.assert_array_equal(pair, every[2:])


def test_a_batch_that_was_not_declared_is_an_error(unet, watch):
    with torch.no_grad(), watch([LAYER], 1) as capture:
        call(unet, 4)
        with pytest.raises(RuntimeError, match="guidance is not what was declared"):
            capture.pop_activations(2)


def test_a_hook_that_never_fires_is_an_error(unet, watch):
    with watch([LAYER], 2) as capture, pytest.raises(RuntimeError, match=LAYER):
        capture.pop_activations(2)


def test_what_overflows_float16_is_counted(unet, watch):
    with torch.no_grad():
        for parameter in dict(unet.named_modules())[LAYER].to_out[0].parameters():
            parameter.mul_(1e9)
        with watch([LAYER], 1) as capture:
            call(unet, 2)
            values, bad = HostTransfer(capture.pop_activations(2)).result()[LAYER]
    assert bad.tolist() == (~np.isfinite(values)).reshape(2, -1).sum(1).tolist()
    assert bad.min() > 0


def test_hooks_are_gone_afterwards(unet, watch):
    with watch([LAYER], 1):
        pass
    assert not any(module._forward_hooks for module in unet.modules())


@pytest.fixture
def dry(architecture):
    """The tiny networks on the meta device, and what `layer_shapes` finds."""
    denoiser, vae = meta_modules(architecture)
    names = list(capturable_modules(denoiser, vae))

    def shapes(*layers):
        found = match_layers(architecture, names, layers)
        return layer_shapes(architecture, denoiser, vae, found)

    return shapes


def test_globs_match_in_the_denoisers_order(dry):
    names = list(dry("up_blocks.*.attn1", "down_blocks.*.attn1"))
    assert names[0].startswith("down_blocks")
    assert names[-1].startswith("up_blocks")
    with pytest.raises(UserError, match=r"mid_blok\.\*' matches no module.*mid_block"):
        dry("mid_blok.*")


def test_presets_stand_for_the_familys_own_globs(dry):
    assert all(name.endswith(".attn1") for name in dry("self-attention"))
    assert all(name.endswith(".attn2") for name in dry("cross-attention"))
    assert list(dry("blocks")) == [
        "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"
    ]  # fmt: skip
    assert "mid_block.resnets.1" in dry("resnets")
    assert not any(name.startswith("vae.") for name in dry("resnets", "*conv1"))
    assert any(name.startswith("vae.") for name in dry("vae.*conv1"))
    assert dry("vae") == {"vae.decoder.mid_block.attentions.0": (8, 8, 16)}


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("*.to_q", []),  # an ordinary module: tokens by channels
        ("time_embedding", ["time_embedding", "gives a Tensor of shape (1, 32)"]),
        ("*.attn2.to_k", ["attn2.to_k", "77 tokens do not tile 8 x 8"]),
        ("vae.decoder.up_blocks.0.resnets.0.dropout", []),
        ("time_proj*", ["time_proj", "narrower"]),
    ],
)
def test_what_cannot_be_probed_is_said_before_anything_is_generated(dry, layer, words):
    if not words:
        assert dry(layer)
        return
    with pytest.raises(UserError) as caught:
        dry(layer)
    for word in words:
        assert word in str(caught.value)


def test_lists_of_modules_are_no_layers_and_what_is_never_called_is_named(architecture):
    denoiser, vae = meta_modules(architecture)
    names = list(capturable_modules(denoiser, vae))
    found = match_layers(architecture, names, ("*attn1*",))
    assert not any(name.endswith(".to_out") for name in found)
    assert any(name.endswith(".to_out.0") for name in found)
    assert layer_shapes(architecture, denoiser, vae, found)
    denoiser.idle = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"idle is never called"):
        layer_shapes(architecture, denoiser, vae, ["idle"])


def test_shapes_of_a_dry_run_equal_those_of_a_real_one(unet, watch, dry):
    names = [*dry("*.attn1"), "mid_block.resnets.0"]
    shapes = dry(*names)
    with torch.no_grad(), watch(names, 1) as capture:
        call(unet, 1)
        for name, values in capture.pop_activations(1).items():
            assert values.shape[1:] == shapes[name]


def test_tokens_of_a_picture_that_is_not_square():
    tokens = torch.arange(32.0).reshape(1, 32, 1)
    grid = to_grid(tokens, Grid(16, 8))
    assert grid.shape == (1, 8, 4, 1)
    assert grid[0, 1, 0, 0] == 4  # row by row
    for wrong in (torch.zeros(1, 30, 1), torch.zeros(4), "text"):
        with pytest.raises(ValueError, match=r"tile|not tokens"):
            to_grid(wrong, Grid(16, 8))


def test_text_tokens_that_come_first_are_dropped():
    tokens = torch.arange(39.0).reshape(1, 39, 1)
    grid = to_grid((None, tokens), Grid(8, 4, text=7), item=1)
    assert grid.shape == (1, 8, 4, 1)
    assert grid[0, 0, 0, 0] == 7


def test_permuting_keeps_every_tensors_values():
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.load_state_dict(first.state_dict())
    permute_weights(second)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert not torch.equal(a, b)
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
