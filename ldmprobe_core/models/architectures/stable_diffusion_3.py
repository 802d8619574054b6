"""Architecture of Stable Diffusion 3, a transformer with joint attention to text and image."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel

from ldmprobe_core.models.architectures.base import (
    TransformerArchitecture,
)
from ldmprobe_core.models.architectures.flow_matching import ShiftedLatents, dynamic_shift
from ldmprobe_core.models.architectures.text_widths import stated_widths


class StableDiffusion3(ShiftedLatents, TransformerArchitecture):
    """Stable Diffusion 3, a flow-matching transformer whose blocks return text and image tokens."""

    network = SD3Transformer2DModel
    presets: ClassVar = {
        "self-attention": ("transformer_blocks.*.attn",),
        "blocks": ("transformer_blocks.[0-9]", "transformer_blocks.[0-9][0-9]"),
    }
    joint_block_classes = ("JointTransformerBlock",)
    optional_encoders = ("text_encoder_3",)

    def text_widths(self, encoders: dict[str, dict[str, Any]]) -> list[tuple[str, int, int]]:
        """Return expected and actual widths of CLIP's pooled embeddings and T5's token embeddings.

        CLIP's token embeddings are padded to the width of T5's, so they need no check.
        """
        clip = [encoders.get(name, {}) for name in ("text_encoder", "text_encoder_2")]
        pooled = [config.get("projection_dim") for config in clip]
        rows = [("pooled_projection_dim", self.config["pooled_projection_dim"], pooled)]
        if "text_encoder_3" in encoders:
            width = encoders["text_encoder_3"].get("d_model")
            rows.append(("joint_attention_dim", self.config["joint_attention_dim"], [width]))
        return stated_widths(rows)

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Set a scheduler's timesteps, with a shift that depends on the number of image tokens.

        The shift (Esser et al. 2024, section 5.3.2) applies only if the scheduler's config has
        ``use_dynamic_shifting``.
        """
        if scheduler.config.get("use_dynamic_shifting"):
            mu = dynamic_shift(scheduler, self.grid, default_max_shift=1.16)
            scheduler.set_timesteps(steps, mu=mu)
        else:
            scheduler.set_timesteps(steps)

    def dummy_inputs(self) -> dict[str, Any]:
        """Build keyword arguments for a call of Stable Diffusion 3's transformer on one sample."""
        return {
            "hidden_states": torch.empty(1, self.config["in_channels"], *self.latent),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.empty(1, 77, self.config["joint_attention_dim"]),
            "pooled_projections": torch.empty(1, self.config["pooled_projection_dim"]),
        }
