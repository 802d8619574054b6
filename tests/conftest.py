"""Shared fixtures: a tiny untrained pipeline in the ordinary folder layout, and studies of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach out
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

import pytest
import tiny_models
import torch
from diffusers import DDIMScheduler

from ldmprobe_core.study import Study
from ldmprobe_core.study_file import parse_study

TINY_LAYERS = ("down_blocks.0.attentions.0.*.attn1", "mid_block.*.attn1")


def write_tiny_model(folder: Path, prediction: str = "epsilon") -> Path:
    """A Stable Diffusion pipeline of a few thousand random weights, 16 x 16 pixels."""
    torch.manual_seed(0)
    pipeline = tiny_models.stable_diffusion_1()
    pipeline.register_modules(
        scheduler=DDIMScheduler(
            **tiny_models.NOISE,
            prediction_type=prediction,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny_study(tiny_model: Path) -> Callable[..., Study]:
    """A study of the tiny model: 12 samples, 3 steps, 2 layers; keyword parts override."""

    def make(**parts: Any) -> Study:
        content: dict[str, Any] = {
            "name": "tiny",
            "model": {"source": str(tiny_model)},
            "prompts": {"samples": 12},
            "sampling": {"steps": 3, "batch": 4, "guidance": 2.0, "threads": 1},
            "capture": {"layers": list(TINY_LAYERS)},
            "statistics": {"resamples": 200},
        }
        for key, value in parts.items():
            old = content.get(key)
            content[key] = {**old, **value} if isinstance(old, dict) else value
        return parse_study(content)

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: of two processes, neither is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_stack.py")
