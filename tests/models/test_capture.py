"""Captured activations against a forward pass written out by hand."""

import numpy as np
import pytest
import torch
from model_helpers import LAYER, call_unet

from ldmprobe_core.models.host_transfer import HostTransfer


def test_captured_self_attention_equals_softmax_of_queries_and_keys(unet, capture_layers):
    """softmax(q k / sqrt(d)) v, written out head by head, on the module's own input."""
    attention = dict(unet.named_modules())[LAYER]
    seen = {}
    hook = attention.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    with torch.no_grad(), capture_layers([LAYER], 2) as capture:
        call_unet(unet, 6)
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


def test_captured_values_are_those_before_the_network_changes_them_in_place(unet, capture_layers):
    """As FreeU does, which scales the channels of a block's output before the next block."""
    seen = {}

    def keep_and_scale(_module, _inputs, output):
        if "before" in seen:
            output.mul_(1.5)
        else:
            seen["before"] = output[2:].clone()

    module = dict(unet.named_modules())[LAYER]
    with torch.no_grad():
        hook = module.register_forward_hook(keep_and_scale)
        call_unet(unet, 4)
        hook.remove()
        with capture_layers([LAYER], 2) as capture:
            hook = module.register_forward_hook(keep_and_scale)  # called after the capture's hook
            call_unet(unet, 4)
            values = capture.pop_activations(2)[LAYER]
    hook.remove()
    expected = seen["before"].reshape(values.shape).half()
    np.testing.assert_array_equal(values.numpy(), expected.numpy())


def test_captured_conditional_half_is_the_second(unet, capture_layers):
    with torch.no_grad(), capture_layers([LAYER], 2) as capture:
        call_unet(unet, 4)
        pair = capture.pop_activations(2)[LAYER]
    with torch.no_grad(), capture_layers([LAYER], 1) as capture:
        call_unet(unet, 4)
        every = capture.pop_activations(4)[LAYER]
    np.testing.assert_array_equal(pair, every[2:])


def test_pop_activations_refuses_a_batch_that_was_not_declared(unet, capture_layers):
    with torch.no_grad(), capture_layers([LAYER], 1) as capture:
        call_unet(unet, 4)
        with pytest.raises(RuntimeError, match="copies as the Architecture declares"):
            capture.pop_activations(2)


def test_pop_activations_names_a_layer_whose_hook_never_fired(unet, capture_layers):
    with capture_layers([LAYER], 2) as capture, pytest.raises(RuntimeError, match=LAYER):
        capture.pop_activations(2)


def test_capture_removes_its_hooks(unet, capture_layers):
    with capture_layers([LAYER], 1):
        pass
    assert not any(module._forward_hooks for module in unet.modules())


def test_run_network_ends_after_the_last_captured_output_with_the_same_values(unet, capture_layers):
    inputs = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    words = torch.randn(2, 5, unet.config.cross_attention_dim)
    arguments = (inputs, torch.tensor(3), words)
    ends = []
    hook = unet.conv_out.register_forward_hook(lambda *_: ends.append(1))
    with torch.no_grad(), capture_layers([LAYER], 1) as capture:
        unet(*arguments)
        outputs = capture.calls
        whole = capture.pop_activations(2)[LAYER]
        assert (len(ends), outputs, capture.calls) == (1, 1, 0)
        capture.run_network(unet, arguments, {}, outputs)
        assert len(ends) == 1
        np.testing.assert_array_equal(capture.pop_activations(2)[LAYER], whole)
        unet(*arguments)
    assert len(ends) == 2
    hook.remove()
