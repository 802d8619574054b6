"""Planned memory of a worker, by hand and against that of a process."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ldmprobe_core.labelers.registry import labelers_of
from ldmprobe_core.labelers.tabletop import locate_weights
from ldmprobe_core.pipeline.planning.memory import peak_bytes, planned_bytes
from ldmprobe_core.pipeline.planning.plan import plan_study


def test_peak_bytes_counts_tensors_that_exist_together_and_views_once():
    def call():
        one = torch.empty(100)  # 400 bytes
        two = one * 2  # 800
        view = two.reshape(10, 10).transpose(0, 1)
        del one, two
        three = view + 1  # 800, since the view keeps its base
        del view
        return torch.cat([three, three])  # 400 + 800

    assert peak_bytes(call) == 1200


def test_peak_bytes_leaves_out_weights_and_attention_scores():
    with torch.device("meta"):
        network = nn.Linear(16, 16)

    def call():
        tokens = torch.empty(1, 1000, 16)  # 64,000 bytes
        query = network(tokens)  # 128,000
        # A matrix of scores would have 4,000,000 bytes.
        return scaled_dot_product_attention(query, query, query)  # 192,000

    assert peak_bytes(call, network) == 192_000


def test_peak_bytes_counts_the_input_of_a_convolution_twice():
    with torch.device("meta"):
        network = nn.Conv2d(4, 8, 3, padding=1)
    # Float32 values of 4 channels, their copy, and 8 channels of output.
    assert peak_bytes(lambda: network(torch.empty(1, 4, 10, 10)), network) == (4 + 4 + 8) * 400


def test_worker_memory_grows_with_batch_and_guidance(tiny_study):
    guided, alone = (
        plan_study(tiny_study(sampling={"guidance": scale})).worker for scale in (2.0, 1.0)
    )
    small, large = guided.of_batch(4), guided.of_batch(8)
    for use in ("images", "activations", "intermediate values"):
        assert large[use] == 2 * small[use]
    # Without guidance the denoiser has half as many inputs, but the decoder may need more.
    half = alone.of_batch(4)["intermediate values"]
    assert small["intermediate values"] / 2 <= half <= small["intermediate values"]
    constant = ("libraries", "denoiser", "vae", "text encoders", "labelers")
    assert {use: small[use] for use in constant} == {use: large[use] for use in constant}


def test_worker_memory_counts_the_weights_of_labelers_and_of_the_untrained_copy(tiny_study):
    study = tiny_study()
    files = {file for spec in labelers_of(study).values() for file in locate_weights(spec)}
    on, off = (
        plan_study(tiny_study(controls={"permuted_weights": value})).memory
        for value in (True, False)
    )
    assert on["labelers"] == off["labelers"] == sum(file.stat().st_size for file in files)
    assert on["denoiser"] == 2 * off["denoiser"]


def test_planned_bytes_share_libraries_and_on_a_gpu_the_networks():
    memory = {"libraries": 100, "denoiser": 40, "vae": 7, "activations": 3, "images": 2}
    assert planned_bytes(memory) == {"memory": 152}
    assert planned_bytes(memory, threads=3) == {"memory": 100 + 3 * 52}
    assert planned_bytes(memory, 2, on_gpu=True) == {"memory": 100 + 2 * 5, "GPU memory": 47}
