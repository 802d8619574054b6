"""Planned memory of a worker, by hand and against that of a process."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torchvision.models import vgg16

from ldmprobe_core.labelers.registry import find_labeler, labelers_of
from ldmprobe_core.labelers.tabletop import locate_weights
from ldmprobe_core.labelers.tabletop_networks import ClassNetwork, MapNetwork
from ldmprobe_core.pipeline.planning.allocations import trace_call
from ldmprobe_core.pipeline.planning.memory import planned_bytes
from ldmprobe_core.pipeline.planning.plan import plan_study


def test_trace_counts_tensors_that_exist_together_and_views_once():
    def call():
        one = torch.empty(100)  # 400 bytes
        two = one * 2  # 800
        view = two.reshape(10, 10).transpose(0, 1)
        del one, two
        three = view + 1  # 800, since the view keeps its base
        del view
        return torch.cat([three, three])  # 400 + 800

    assert trace_call(call).peak() == 1200


def test_trace_leaves_out_weights_and_attention_scores():
    with torch.device("meta"):
        network = nn.Linear(16, 16)

    def call():
        tokens = torch.empty(1, 1000, 16)  # 64,000 bytes
        query = network(tokens)  # 128,000
        # A matrix of scores would have 4,000,000 bytes.
        return scaled_dot_product_attention(query, query, query)  # 192,000

    assert trace_call(call, network).peak() == 192_000


def test_trace_counts_the_input_of_a_convolution_twice():
    with torch.device("meta"):
        network = nn.Conv2d(4, 8, 3, padding=1)
    # Float32 values of 4 channels, their copy, and 8 channels of output.
    trace = trace_call(lambda: network(torch.empty(1, 4, 10, 10)), network)
    assert trace.peak() == (4 + 4 + 8) * 400


def test_worker_memory_grows_with_batch_and_guidance(tiny_study):
    guided, alone = (
        plan_study(tiny_study(sampling={"guidance": scale})).worker for scale in (2.0, 1.0)
    )
    small, large = guided.of_batch(4), guided.of_batch(8)
    for use in ("images", "labels", "activations", "intermediate values", "kept memory"):
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


def test_trace_scales_with_samples_and_tells_what_the_allocator_keeps():
    def call():
        one = torch.empty(1 << 20)  # 4 MiB
        two = torch.cat([one] * 3)  # 12 MiB
        del one
        return two + 1  # 12 MiB

    trace, mib = trace_call(call), 1 << 20
    assert (trace.peak(), trace.kept()) == (24 * mib, 24 * mib)
    # With four samples the tensors have 16, 48 and 48 MiB, and only the first is below 32 MiB.
    assert (trace.peak(4), trace.kept(4)) == (96 * mib, 16 * mib)


def test_kept_memory_adds_up_small_tensors_of_denoiser_decoder_and_labelers(tiny_study):
    plan = plan_study(tiny_study())
    memory = plan.memory
    denoiser, vae = plan.worker.networks
    architecture = plan.worker.source.architecture
    latents = (1, 4, *architecture.latent)
    # The tiny networks have no tensor of 32 MiB.  A batch of 4 with guidance is 8 denoiser inputs.
    calls = [
        8 * trace_call(lambda: denoiser(**architecture.dummy_inputs()), denoiser).peak(),
        4 * trace_call(lambda: architecture.decode(vae, torch.empty(latents)), vae).peak(),
        404 * 16 * 16 * 12,  # the map network on 4 samples x 3 steps of 16 x 16 pixels
    ]
    assert memory["intermediate values"] == max(calls)
    assert memory["kept memory"] == sum(calls) - max(calls)
    # float32 maps of finished images; and of step images twice, while their last step is appended
    assert memory["labels"] == 4 * 16 * 16 * 3 * (4 + 3 * 8)


@pytest.mark.parametrize(
    ("network", "entry", "shape"),
    [
        (MapNetwork, ("depth", "tabletop"), (64, 64)),
        (lambda: ClassNetwork(12), ("class", "tabletop"), (64, 64)),
        (vgg16, ("class", "vgg16"), (224, 224)),
    ],
)
def test_call_memory_of_labelers_is_that_of_their_networks(network, entry, shape):
    with torch.device("meta"):
        built = network().eval()
    stated = find_labeler(*entry).call_memory(shape)
    n = stated.at_once

    def call():
        # The labelers scale uint8 images, so that two arrays of floats exist.
        return built(torch.empty(n, 3, *shape) / 127.5 - 1)

    trace = trace_call(call, built)
    assert n * stated.peak == pytest.approx(trace.peak(), rel=0.05)
    assert n * stated.small == pytest.approx(trace.kept(), rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the memory of Linux")
def test_peak_memory_of_a_worker_is_within_15_percent_of_the_plan():
    need = 8e9  # Stable Diffusion 1.4's networks, and what one image of 256 x 256 pixels takes
    if psutil.virtual_memory().available < need:
        pytest.skip(f"needs {need / 1e9:.0f} GB of free memory")
    code = (
        "import json, benchmarks.memory as m;"
        "print(json.dumps([f.value for f in m.measure('sd', 256)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=550
    )
    planned, measured, ratio = json.loads(done.stdout.splitlines()[-1])
    assert measured > 4.7  # weights alone: 860, 84 and 123 million float32 values, and libraries
    assert ratio == pytest.approx(measured / planned)
    assert 0.85 <= ratio <= 1.15
