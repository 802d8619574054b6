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
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from ldmprobe_core.study import Study, parse_study
from ldmprobe_core.tabletop.tokenizer import CAPTION_LENGTH, new_tokenizer

TINY_LAYERS = ("down_blocks.0.attentions.0.*.attn1", "mid_block.*.attn1")


def write_tiny_model(folder: Path, prediction: str = "epsilon") -> Path:
    """A Stable Diffusion pipeline of a few thousand random weights, 16 x 16 pixels."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CAPTION_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.5,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
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
