"""Pipelines as notebooks have them: with an adapter, edited weights and another scheduler."""

import numpy as np
import tiny_models
import torch
from diffusers import EulerDiscreteScheduler
from torch import nn


class LowRank(nn.Module):
    """A linear layer with an update of rank 1 (LoRA), and the scale of the update."""

    def __init__(self, base, scale):
        super().__init__()
        self.base, self.scale = base, scale
        self.down = nn.Linear(base.in_features, 1, bias=False)
        self.up = nn.Linear(1, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.scale * self.up(self.down(x))


def adapted_pipeline():
    """Tiny Stable Diffusion with an adapter on its middle layer, and Euler's scheduler."""
    torch.manual_seed(0)
    pipe = tiny_models.stable_diffusion_1()
    pipe.set_progress_bar_config(disable=True)
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.to_v = LowRank(attention.to_v, scale=3.0)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe


def images_of(pipe, prompts, seeds, **arguments):
    """The pipeline's own images, uint8."""
    images = pipe(
        prompt=list(prompts),
        generator=[torch.Generator().manual_seed(int(seed)) for seed in seeds],
        output_type="np",
        **arguments,
    ).images
    return (images * 255).round().astype(np.uint8)
