"""Loading denoisers: permuted weights, offload."""

import pytest
import torch
from model_helpers import architecture_study, load_sampler
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.devices import check_device
from ldmprobe_core.models.loading import permute_weights
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
