"""Single-file checkpoints, whose tensors have the names of the original code."""

import re

from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE = [
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.group_norm", r"\1.mid.attn_1.norm"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.to_([qkv])", r"\1.mid.attn_1.\2"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.to_out\.0", r"\1.mid.attn_1.proj_out"),
    (r"(encoder|decoder)\.mid_block\.resnets\.0", r"\1.mid.block_1"),
    (r"(encoder|decoder)\.mid_block\.resnets\.1", r"\1.mid.block_2"),
    (r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    # The original code numbers the two levels of the decoder from the image.
    (r"decoder\.up_blocks\.0\.resnets", "decoder.up.1.block"),
    (r"decoder\.up_blocks\.1\.resnets", "decoder.up.0.block"),
    (r"decoder\.up_blocks\.0\.upsamplers\.0", "decoder.up.1.upsample"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
]


def _unet_name(name: str) -> str:
    for ours, theirs in sorted(_UNET.items(), key=lambda pair: -len(pair[0])):
        if name.startswith(ours + "."):
            rest = name.removeprefix(ours + ".")
            part, _, kind = rest.rpartition(".")
            return f"{theirs}.{_RESNET.get(part, part)}.{kind}".replace("..", ".")
    raise KeyError(name)


def _vae_name(name: str) -> str:
    for ours, theirs in _VAE:
        name = re.sub(ours, theirs, name)
    return name


def write_single_file(pipe, path, drop=()):
    """Write a tiny Stable Diffusion 1 into one file, without names that begin with `drop`."""
    tensors = {}
    for name, value in pipe.unet.state_dict().items():
        tensors["model.diffusion_model." + _unet_name(name)] = value
    for name, value in pipe.vae.state_dict().items():
        is_projection = re.search(r"mid_block\.attentions.*to_.*weight", name)
        shaped = value[:, :, None, None] if is_projection else value
        tensors["first_stage_model." + _vae_name(name)] = shaped
    for name, value in pipe.text_encoder.state_dict().items():
        prefix = "" if name.startswith("text_model.") else "text_model."
        tensors[f"cond_stage_model.transformer.{prefix}{name}"] = value
    kept = {n: v.contiguous() for n, v in tensors.items() if not n.startswith(tuple(drop))}
    save_file(kept, path)
    return path
