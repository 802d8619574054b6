"""Tiny random checkpoints of few-step models and of families with language models as encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_models
import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
    TCDScheduler,
)
from tiny_models import NOISE, new_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters_tokenizer(**parts: Any) -> PreTrainedTokenizerFast:
    """A token for each letter."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {c: i for i, c in enumerate(LETTERS, 3)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **special, **{"model_max_length": 512, **parts}
    )


def with_scheduler(pipeline: Any, scheduler: Any) -> Any:
    pipeline.register_modules(scheduler=scheduler)
    return pipeline


def lcm() -> Any:
    """Guidance is an input of the UNet."""
    return LatentConsistencyModelPipeline(
        vae=tiny_models.vae(),
        text_encoder=tiny_models.clip(),
        tokenizer=new_tokenizer(),
        unet=tiny_models.unet(time_cond_proj_dim=8),
        scheduler=LCMScheduler(**NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def lcm_on_sd1() -> Any:
    return with_scheduler(tiny_models.stable_diffusion_1(), LCMScheduler(**NOISE))


def tcd() -> Any:
    return with_scheduler(tiny_models.stable_diffusion_xl(), TCDScheduler(**NOISE))


def turbo() -> Any:
    scheduler = EulerAncestralDiscreteScheduler(**NOISE, timestep_spacing="trailing")
    return with_scheduler(tiny_models.stable_diffusion_xl(), scheduler)


def sana() -> Any:
    return SanaPipeline(
        tokenizer=letters_tokenizer(),
        text_encoder=Gemma2Model(
            Gemma2Config(
                vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=1, head_dim=8,
            )
        ).eval(),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(8, 8, 16),
            decoder_block_out_channels=(8, 8, 16),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.4,
        ),
        transformer=SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
            num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=8,
            cross_attention_dim=16, caption_channels=16, sample_size=8,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0,
            final_sigmas_type="zero",
        ),
    )  # fmt: skip


def write(build: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    build().save_pretrained(folder, safe_serialization=True)
    return folder
