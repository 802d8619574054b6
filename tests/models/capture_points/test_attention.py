"""Queries, keys, values and heads against forward passes written out by hand."""

import numpy as np
import pytest
import torch
from model_helpers import LAYER, architecture_study, call_unet, load_sampler
from run_helpers import carry_out, generated, small_study
from torch.nn.functional import linear

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.models.capture import ActivationCapture
from ldmprobe_core.models.layers import named_points
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.samples import make_samples

CROSS = LAYER.replace("attn1", "attn2")
JOINT = "transformer_blocks.0.attn"


def hand_written(attention, image, text=None):
    """Projections of image tokens, and each head's output for them, in double precision.

    Args:
        attention: layer whose ``to_q``, ``to_k`` and ``to_v`` project the image, and whose
            ``add_k_proj`` and ``add_v_proj`` project the text.
    """

    def project(name, tokens):
        layer = getattr(attention, name)
        bias = None if layer.bias is None else layer.bias.double()
        return linear(tokens.double(), layer.weight.double(), bias)

    expected = {n: project(f"to_{n[0]}", image) for n in ("query", "key", "value")}
    key, value = expected["key"], expected["value"]
    if text is not None:
        key = torch.cat([key, project("add_k_proj", text)], 1)
        value = torch.cat([value, project("add_v_proj", text)], 1)
    for head, part in enumerate(torch.arange(key.shape[-1]).chunk(attention.heads)):
        scores = expected["query"][..., part] @ key[..., part].transpose(1, 2)
        weight = (scores / len(part) ** 0.5).softmax(-1)
        expected[f"head{head}"] = weight @ value[..., part]
    return expected


def captured(network, architecture, names, call):
    """Values of capture points in one call, and the keyword and other inputs of their layer."""
    points = named_points(network)
    inputs = {}
    layer = network.get_submodule(names[0].partition("@")[0])
    hook = layer.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.update(kwargs, args=args), with_kwargs=True
    )
    chosen = {name: points[name] for name in names}
    with torch.no_grad(), ActivationCapture(chosen, architecture, 1, network) as capture:
        call()
        values = capture.pop_activations(2)
    hook.remove()
    return values, inputs


@pytest.mark.parametrize("fused", [False, True])
def test_points_of_self_attention_equal_a_hand_written_pass(unet, architecture, fused):
    names = [f"{LAYER}@{point}" for point in ("query", "key", "value", "head0", "head1")]
    found = [n for n in named_points(unet) if n.startswith(f"{LAYER}@")]
    assert found == [*names, f"{LAYER}@tokens"]
    if fused:
        with torch.no_grad():
            unet.fuse_qkv_projections()
    values, inputs = captured(unet, architecture, names, lambda: call_unet(unet, 2))
    with torch.no_grad():
        expected = hand_written(unet.get_submodule(LAYER), inputs["args"][0])
    for name in names:
        hand = expected[name.partition("@")[2]].unflatten(1, (4, 4))
        assert values[name].dtype == torch.float16
        np.testing.assert_allclose(values[name], hand, rtol=1e-3, atol=1e-4)


def test_points_of_joint_attention_equal_a_hand_written_pass_on_image_tokens(model_folders):
    """The text is in the softmax of every head, but not among the captured tokens."""
    sampler = load_sampler(architecture_study(model_folders["sd3"], "sd3"))
    network = sampler.denoiser
    generator = torch.Generator().manual_seed(0)
    call = {
        name: torch.randn(2, *value.shape[1:], generator=generator)
        for name, value in sampler.architecture.dummy_inputs().items()
        if name != "timestep"
    }
    names = [f"{JOINT}@{point}" for point in ("query", "key", "value", "head0", "head1")]
    values, inputs = captured(
        network, sampler.architecture, names, lambda: network(timestep=torch.ones(2), **call)
    )
    image, text = inputs["hidden_states"], inputs["encoder_hidden_states"]
    with torch.no_grad():
        expected = hand_written(network.get_submodule(JOINT), image, text)
    for name in names:
        hand = expected[name.partition("@")[2]].unflatten(1, (4, 4))
        np.testing.assert_allclose(values[name], hand, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "points"),
    [
        ("sdxl", ["self-attention@*", "cross-attention@*"], ["query", "head1"]),
        ("pixart", ["self-attention@[kv]*", "cross-attention@query"], ["query", "key", "value"]),
        ("flux", ["self-attention@*", "vae@query"], ["query", "key", "head0", "head1"]),
    ],
)
def test_planned_shapes_of_points_equal_those_of_a_run(model_folders, name, layers, points):
    parts = {"capture": {"layers": layers}, "controls": {"permuted_weights": {}}}
    study = architecture_study(model_folders[name], name, **parts)
    shapes = plan_study(study).shapes
    batch = generated(load_sampler(study), make_samples(study)[:1])
    assert {layer.partition("@")[2] for layer in batch.activations.values} >= set(points)
    for network in (batch.activations, batch.permuted):
        for layer, values in network.values.items():
            assert values.shape[2:] == shapes[layer]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("cross-attention@key", "text tokens"),
        ("*.attn2@value", "text tokens"),
        ("self-attention@head2", "@head<number>"),
        ("mid_block@query", "of an attention layer"),
        ("selfattention@query", "of an attention layer"),
    ],
)
def test_points_that_a_layer_lacks_are_refused(tiny_model, layer, words):
    study = architecture_study(tiny_model, "sd1", capture={"layers": [layer]})
    with pytest.raises(UserError, match=r"capture\.layers: .* matches no module") as caught:
        plan_study(study)
    assert words in str(caught.value)
    with pytest.raises(UserError, match=words):
        load_sampler(study)


def test_globs_without_a_point_select_layers_only(tiny_model):
    study = architecture_study(tiny_model, "sd1", capture={"layers": ["mid_block*attn*"]})
    layers = load_sampler(study).layers
    assert LAYER in layers
    assert not any("@" in name for name in layers)


def test_points_are_stored_probed_and_reported_as_layers(tiny_model, tmp_path):
    study = small_study("points", tiny_model, 12)
    channels = {f"{CROSS}@query": 16, f"{CROSS}@words": 24, f"{LAYER}@head1": 8}
    names = tuple(channels)
    study = study.model_copy(update={"capture": study.capture.model_copy(update={"layers": names})})
    run = carry_out(study, str(tmp_path))
    build_report(run, {"generate": 1.0})
    assert set(run.layers) == set(names)
    sampler = load_sampler(study)
    batch = generated(sampler, list(run.samples[:4]))
    for name in names:
        stored = run.read(f"activations/{name}", "activation", step=0)
        assert stored.shape == (12, 4, 4, channels[name])
        np.testing.assert_array_equal(stored[:4], batch.activations.values[name][:, 0])
    assert "attn2@query" in run.location.read_text("report/index.html")
    edits = plan_intervention(run, Intervention(samples=1, steps=1, layers=("*@[hq]*",)))
    assert set(edits.sites[0].layers) == set(names) - {f"{CROSS}@words"}
    with pytest.raises(UserError, match=r"edited only where a glob has @ \(\*\)"):
        plan_intervention(run, Intervention(samples=1, steps=1))
    with pytest.raises(UserError, match="attention maps cannot be edited"):
        plan_intervention(run, Intervention(samples=1, steps=1, layers=("*@words",)))
