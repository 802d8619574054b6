"""Tiny random checkpoints of few-step models and of families with language models as encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_models
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    TCDScheduler,
)
from tiny_models import NOISE, new_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

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


def qwen_image() -> Any:
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    transformer.register_to_config(sample_size=8)
    text = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]
        },
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": 16, "fullatt_block_indexes": [0],
    }  # fmt: skip
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ).eval(),
        tokenizer=letters_tokenizer(),
        transformer=transformer,
    )  # fmt: skip


def write(build: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    build().save_pretrained(folder, safe_serialization=True)
    return folder
