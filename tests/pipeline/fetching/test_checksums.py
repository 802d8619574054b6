"""Conversion of fetched pickles to safetensors."""

import pytest
import torch
from safetensors.torch import load_file

from ldmprobe_core.pipeline.fetching.checksums import convert_pickle


@pytest.mark.parametrize(
    ("pickle", "target"),
    [
        ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
        ("cache/tracer_b7.pth", "elsewhere/weights.safetensors"),
    ],
)
def test_convert_pickle_leaves_the_target_alone(tmp_path, pickle, target):
    source, result = tmp_path / pickle, tmp_path / target
    source.parent.mkdir(exist_ok=True)
    torch.save({"weight": torch.arange(3.0)}, source)
    convert_pickle("model.source", source, result)
    assert load_file(result)["weight"].tolist() == [0.0, 1.0, 2.0]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [result]
