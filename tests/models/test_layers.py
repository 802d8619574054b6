"""Layers that can be captured: globs, presets, shapes of a dry run."""

import pytest
import torch
from model_helpers import architecture_study, call_unet, load_sampler
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models import loading
from ldmprobe_core.models.layers import (
    capturable_modules,
    image_output_index,
    layer_shapes,
    match_layers,
)
from ldmprobe_core.models.loading import meta_modules
from ldmprobe_core.models.token_grid import to_grid
from ldmprobe_core.pipeline.planning.plan import plan_study


@pytest.fixture
def dry_run_shapes(architecture):
    """The tiny networks on the meta device, and what `layer_shapes` finds."""
    denoiser, vae = meta_modules(architecture)
    names = list(capturable_modules(denoiser, vae))

    def shapes(*layers):
        found = match_layers(architecture, names, layers)
        return layer_shapes(architecture, denoiser, vae, found)

    return shapes


def test_match_layers_returns_globs_in_the_denoisers_order(dry_run_shapes):
    names = list(dry_run_shapes("up_blocks.*.attn1", "down_blocks.*.attn1"))
    assert names[0].startswith("down_blocks")
    assert names[-1].startswith("up_blocks")
    with pytest.raises(UserError, match=r"mid_blok\.\*' matches no module.*mid_block"):
        dry_run_shapes("mid_blok.*")


def test_match_layers_expands_the_presets_of_the_architecture(dry_run_shapes):
    assert all(name.endswith(".attn1") for name in dry_run_shapes("self-attention"))
    assert all(name.endswith(".attn2") for name in dry_run_shapes("cross-attention"))
    assert list(dry_run_shapes("blocks")) == [
        "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"
    ]  # fmt: skip
    assert "mid_block.resnets.1" in dry_run_shapes("resnets")
    assert not any(name.startswith("vae.") for name in dry_run_shapes("resnets", "*conv1"))
    assert any(name.startswith("vae.") for name in dry_run_shapes("vae.*conv1"))
    assert dry_run_shapes("vae") == {"vae.decoder.mid_block.attentions.0": (8, 8, 16)}


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("*.to_q", []),  # an ordinary module: tokens by channels
        ("time_embedding", ["time_embedding", "output is a Tensor of shape (1, 32)"]),
        (
            "*.attn2.to_k",
            ["attn2.to_k", "77 tokens do not fill a grid whose sides have the ratio 8 to 8"],
        ),
        ("vae.decoder.up_blocks.0.resnets.0.dropout", []),
        ("time_proj*", ["time_proj", "does not match"]),
    ],
)
def test_layer_shapes_refuses_layers_that_cannot_be_probed(dry_run_shapes, layer, words):
    if not words:
        assert dry_run_shapes(layer)
        return
    with pytest.raises(UserError) as caught:
        dry_run_shapes(layer)
    for word in words:
        assert word in str(caught.value)


def test_layer_shapes_skips_module_lists_and_names_a_module_that_is_never_called(architecture):
    denoiser, vae = meta_modules(architecture)
    names = list(capturable_modules(denoiser, vae))
    found = match_layers(architecture, names, ("*attn1*",))
    assert not any(name.endswith(".to_out") for name in found)
    assert any(name.endswith(".to_out.0") for name in found)
    assert layer_shapes(architecture, denoiser, vae, found)
    denoiser.idle = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"idle is never called"):
        layer_shapes(architecture, denoiser, vae, ["idle"])


def test_layer_shapes_equal_those_of_a_real_call(unet, capture_layers, dry_run_shapes):
    names = [*dry_run_shapes("*.attn1"), "mid_block.resnets.0"]
    shapes = dry_run_shapes(*names)
    with torch.no_grad(), capture_layers(names, 1) as capture:
        call_unet(unet, 1)
        for name, values in capture.pop_activations(1).items():
            assert values.shape[1:] == shapes[name]


def test_image_output_index_of_joint_blocks_is_the_image_stream(model_folders):
    """The text comes first in their output; moving one latent must move the captured tokens."""
    for name in ("sd3", "flux"):
        study = architecture_study(model_folders[name], name, capture={"layers": ["blocks"]})
        sampler = load_sampler(study)
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


def test_unknown_preset_lists_those_of_the_architecture(model_folders):
    study = architecture_study(model_folders["sd3"], "sd3", capture={"layers": ["cross-attention"]})
    with pytest.raises(UserError, match=r"preset of this model \(self-attention, blocks, vae\)"):
        plan_study(study)
