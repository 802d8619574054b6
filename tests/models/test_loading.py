"""Loading denoisers: permuted and random weights, offload."""

import re

import pytest
import tiny_models
import torch
from diffusers import UNet2DConditionModel
from model_helpers import architecture_study, load_sampler
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.devices import check_device
from ldmprobe_core.models.loading import load_pipeline, permute_weights, untrained_copy
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.loading import parse_study


def test_permute_weights_keeps_the_values_of_every_tensor():
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.load_state_dict(first.state_dict())
    permute_weights(second)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert not torch.equal(a, b)
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)


def test_untrained_copy_with_random_weights_is_a_new_network_of_the_class():
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
        "layers_per_block": 1,
    }
    torch.manual_seed(100)
    expected = UNet2DConditionModel(**config).half().state_dict()
    network = UNet2DConditionModel(**config).half()
    before, state = network.state_dict(), torch.random.get_rng_state()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    copied = untrained_copy(network, random=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(network.state_dict()[name], kept[name]) for name in kept)
    for name, tensor in copied.state_dict().items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, expected[name])
    assert not torch.equal(copied.conv_in.weight, network.conv_in.weight)


def test_cpu_offload_without_a_gpu_is_refused(model_folders):
    with pytest.raises(UserError, match=r"model\.cpu_offload is true"):
        load_sampler(architecture_study(model_folders["sd1"], "sd1", model={"cpu_offload": True}))


def test_check_device_refuses_offloading_without_a_gpu_before_work(model_folders):
    study = architecture_study(model_folders["sd1"], "sd1", model={"cpu_offload": True})
    with pytest.raises(
        UserError, match=r"cpu_offload is true.*Fix: set model\.cpu_offload to false"
    ):
        check_device(study)
    assert any("cpu_offload" in sentence for sentence in plan_study(study).missing)


@pytest.mark.parametrize("source", ["folder", "tabletop"])
def test_a_revision_of_a_folder_is_refused(model_folders, source):
    model = {"source": str(model_folders["sd1"]) if source == "folder" else source}
    with pytest.raises(
        UserError, match=r"model\.revision: .*\('main'\)\. Fix: leave model.revision out"
    ):
        plan_study(parse_study({"model": {**model, "revision": "main"}}))


def test_model_without_an_encoder_that_its_pipeline_can_do_without_is_loaded(tmp_path):
    """Stable Diffusion 3 is often kept without T5, the largest of its encoders."""
    pipe = tiny_models.stable_diffusion_3()
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    pipe.register_to_config(text_encoder_3=(None, None), tokenizer_3=(None, None))
    pipe.save_pretrained(tmp_path)
    study = architecture_study(tmp_path, "sd3")
    assert plan_study(study).missing == ()
    loaded = load_pipeline(study, torch.device("cpu"))
    assert loaded.text_encoder_3 is None
    assert loaded.tokenizer_3 is None
    assert loaded.text_encoder_2 is not None


def test_model_of_pickles_is_named_as_one(tmp_path):
    tiny_models.stable_diffusion_1().save_pretrained(tmp_path, safe_serialization=False)
    (missing,) = plan_study(architecture_study(tmp_path, "sd1")).missing
    assert re.match(r"model\.source .*its weights are pickles \(\w+/\w+\.bin\).*Fix: ", missing)
