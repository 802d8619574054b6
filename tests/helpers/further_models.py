"""Tiny random checkpoints of few-step models and of families with language models as encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_models
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
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
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PLAIN_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
PARTS_CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }}"
    "{% endfor %}{% endfor %}"
)
DECODER = {
    "vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 2048,
}  # fmt: skip


def letters_tokenizer(**parts: Any) -> PreTrainedTokenizerFast:
    """A token for each letter."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {c: i for i, c in enumerate(LETTERS, 3)}
    words |= {"[IMG]": 29, "[IMG_BREAK]": 30, "[IMG_END]": 31}
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


def flux_2_parts(guidance_embeds: bool) -> dict[str, Any]:
    """Transformer, VAE with statistics of its latents, and scheduler."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, sample_size=16,
        layers_per_block=1,
    )  # fmt: skip
    vae.bn.running_mean.copy_(torch.linspace(-1, 1, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance_embeds,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return {"vae": vae, "transformer": transformer, "scheduler": scheduler}


def flux_2() -> Any:
    """The pipeline reads layers 10, 20 and 30 of its text encoder."""
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 4, "image_size": 32,
    }  # fmt: skip
    text = {"model_type": "mistral", "num_hidden_layers": 30, **DECODER}
    config = Mistral3Config(
        text_config=text, vision_config={"model_type": "pixtral", **vision}, image_token_index=29
    )
    return Flux2Pipeline(
        text_encoder=Mistral3ForConditionalGeneration(config).eval(),
        tokenizer=PixtralProcessor(
            PixtralImageProcessor(), letters_tokenizer(), chat_template=PARTS_CHAT
        ),
        **flux_2_parts(guidance_embeds=True),
    )


def flux_2_klein(is_distilled: bool = False) -> Any:
    """The pipeline reads layers 9, 18 and 27 of its text encoder."""
    config = Qwen3Config(num_hidden_layers=27, **DECODER)
    return Flux2KleinPipeline(
        text_encoder=Qwen3ForCausalLM(config).eval(),
        tokenizer=letters_tokenizer(chat_template=PLAIN_CHAT),
        is_distilled=is_distilled,
        **flux_2_parts(guidance_embeds=False),
    )


def write(build: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    build().save_pretrained(folder, safe_serialization=True)
    return folder
