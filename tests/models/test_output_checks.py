"""A value that is not finite stops a batch; it never becomes a picture."""

import pickle

import numpy as np
import pytest
import tiny_models
import torch
from run_helpers import generated

from ldmprobe_core.errors import RunError
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.loading import load_pipeline
from ldmprobe_core.models.output_checks import (
    NonFiniteError,
    require_finite,
    require_repeatable,
    require_shares,
    require_varied,
)
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import make_samples


def test_require_finite_names_samples_over_all_copies_of_the_batch():
    values = torch.zeros(6, 2, 3)  # two copies of a batch of three
    require_finite({"a": [values, None, torch.ones(1, dtype=torch.long)]}, "unet", 2, 3)
    values[4, 1, 2] = float("inf")
    with pytest.raises(NonFiniteError, match=r"unet: .* at step 2 \(samples 1 of the batch\)"):
        require_finite([{"a": values}], "unet", 2, 3)


def test_non_finite_error_survives_the_way_from_another_process():
    error = NonFiniteError("vae", [0, 2], None)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301, our own bytes
    assert (str(again), again.network, again.samples) == (str(error), "vae", (0, 2))


def test_require_varied_names_the_sample_and_its_colour():
    images = np.zeros((3, 4, 4, 3), np.uint8)
    images[:2, 1, 1] = 9
    with pytest.raises(RunError, match=r"all pixels of sample 12 have one colour \(rgb 0, 0, 0\)"):
        require_varied(images, [10, 11, 12])
    require_varied(images[:2], [10, 11])


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "pixart", "flux"])
@pytest.mark.parametrize("part", ["denoiser", "vae", "text"])
def test_one_nan_in_a_weight_fails_the_batch_and_names_the_network(name, part, tmp_path):
    folder = tiny_models.write(name, tmp_path / name)
    study = parse_study(
        {
            "model": {"source": str(folder)},
            "prompts": {"samples": 3},
            "sampling": {
                "steps": 2,
                "batch": 2,
                "guidance": 2.0,
                "scheduler": "flow" if name in ("sd3", "flux") else "euler",
            },
            "capture": {"layers": ["blocks"]},
            "controls": {"permuted_weights": False},
        }
    )
    pipeline = load_pipeline(study, torch.device("cpu"))
    architecture = detect_architecture(folder)
    network = {
        "denoiser": getattr(pipeline, architecture.denoiser),
        "vae": pipeline.vae.decoder,
        "text": pipeline.text_encoder,
    }[part]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.view(-1)[0] = float("nan")
    sampler = PipelineSampler(pipeline, architecture, study)
    expected = {"denoiser": architecture.denoiser, "vae": "vae", "text": "text encoder"}[part]
    with pytest.raises(NonFiniteError) as caught:
        generated(sampler, make_samples(study)[:2])
    assert caught.value.network == expected
    assert caught.value.step == (None if part == "vae" else 1)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-5.0, 3.0), (-1, 0), (0, 1.5)])
def test_require_shares_names_the_sample_and_the_range(low, high):
    """Two images of each sample; the last image of sample 21 holds the values."""
    values = np.zeros((4, 2, 2), np.float32)
    values[3, 0] = low, high
    with pytest.raises(RunError, match=rf"labels\.m: .*{low:g} to {high:g}, .*sample 21.*Fix: let"):
        require_shares("m", values, [20, 21])
    require_shares("m", np.linspace(-0.009, 1.009, 16).reshape(4, 2, 2), [20, 21])


RNG = np.random.default_rng(0)
VARIED = RNG.random((3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("labels", "difference"),
    [
        (VARIED, 0.005),
        (np.full((3, 4, 4), 0.3, np.float32), 3e-8),
        (np.zeros((3, 4, 4), np.float32), 1e-8),
        (np.full((3,), 250.0, np.float32), 1e-3),
    ],
    ids=["varied", "constant", "empty mask", "equal numbers"],
)
def test_require_repeatable_allows_what_rounding_changes(labels, difference):
    require_repeatable("depth", labels, labels[:1] + np.float32(difference), 7)


@pytest.mark.parametrize(
    ("labels", "difference"),
    [(VARIED, 0.05), (np.full((3, 4, 4), 0.3, np.float32), 0.001), (np.full((3,), 250.0), 0.1)],
    ids=["varied", "constant", "equal numbers"],
)
def test_require_repeatable_names_the_sample_whose_label_differs(labels, difference):
    with pytest.raises(RunError, match=r"labels\.depth: .* sample 7 another label .*Fix: let"):
        require_repeatable("depth", labels, labels[:1] + difference, 7)
