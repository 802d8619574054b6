"""One tiny random checkpoint of every family, saved by the libraries themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from ldmprobe_core.tabletop.tokenizer import CAPTION_LENGTH, new_tokenizer


def clip(projection: int | None = None) -> Any:
    tokenizer = new_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CAPTION_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=projection or 16,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5() -> dict[str, Any]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    config = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_gated_act=False
    )
    return {"text": T5EncoderModel(config), "tokenizer": tokenizer}


def vae(channels: int = 4, **parts: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=channels,
        norm_num_groups=4,
        **{"sample_size": 16, "scaling_factor": 0.5, **parts},
    )


def unet(**parts: Any) -> UNet2DConditionModel:
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**config, **parts})


NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def stable_diffusion_1() -> Any:
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=new_tokenizer(),
        unet=unet(),
        # As Stable Diffusion was published: nothing is said of clipping.
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_2() -> Any:
    pipeline = stable_diffusion_1()
    pipeline.register_modules(
        unet=unet(use_linear_projection=True),
        scheduler=DDIMScheduler(
            **NOISE, prediction_type="v_prediction", clip_sample=False, steps_offset=1
        ),
    )
    return pipeline


def stable_diffusion_xl() -> Any:
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip(),
        text_encoder_2=clip(projection=16),
        tokenizer=new_tokenizer(),
        tokenizer_2=new_tokenizer(),
        unet=unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
            transformer_layers_per_block=(1, 2),
        ),
        scheduler=DDIMScheduler(**NOISE, clip_sample=False, steps_offset=1),
    )


def stable_diffusion_3() -> Any:
    deep = t5()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.1),
        text_encoder=clip(projection=16),
        tokenizer=new_tokenizer(),
        text_encoder_2=clip(projection=16),
        tokenizer_2=new_tokenizer(),
        text_encoder_3=T5EncoderModel(T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
        )),
        tokenizer_3=deep["tokenizer"],
    )  # fmt: skip


def pixart() -> Any:
    deep = t5()
    return PixArtAlphaPipeline(
        tokenizer=deep["tokenizer"],
        text_encoder=deep["text"],
        vae=vae(),
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            cross_attention_dim=16,
            caption_channels=16,
            use_additional_conditions=False,
        ),
        scheduler=DDIMScheduler(**NOISE, clip_sample=False),
    )


def flux() -> Any:
    deep = t5()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1),
        text_encoder=clip(),
        tokenizer=new_tokenizer(),
        text_encoder_2=deep["text"],
        tokenizer_2=deep["tokenizer"],
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "sd1": stable_diffusion_1,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "pixart": pixart,
    "flux": flux,
}


def write(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    FAMILIES[name]().save_pretrained(folder, safe_serialization=True)
    return folder


def write_tiny_model(folder: Path, prediction: str = "epsilon") -> Path:
    """A Stable Diffusion pipeline of a few thousand random weights, 16 x 16 pixels."""
    torch.manual_seed(0)
    pipeline = stable_diffusion_1()
    pipeline.register_modules(
        scheduler=DDIMScheduler(
            **NOISE,
            prediction_type=prediction,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
