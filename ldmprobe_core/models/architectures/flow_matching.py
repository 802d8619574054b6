"""Latent shift and timestep shift that the pipelines of several flow-matching models share."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.models.token_grid import Grid


class ShiftedLatents(Architecture):
    """Base class for pipelines that normalise the VAE's latents by a shift and a scaling factor.

    The shift is ``shift_factor`` of the VAE's config, which is subtracted before the scaling.
    """

    def denormalise(self, latents: Tensor) -> Tensor:
        """Convert latents to the VAE's scale: divide by the scaling factor, then add the shift."""
        return super().denormalise(latents) + self.vae["shift_factor"]

    def normalise(self, latents: Tensor) -> Tensor:
        """Convert latents to the denoiser's scale, the inverse of `denormalise`."""
        return super().normalise(latents - self.vae["shift_factor"])

    def check_vae(self) -> None:
        """Check that the pipeline can use the VAE, and that its ``shift_factor`` is a number."""
        super().check_vae()
        shift = self.vae["shift_factor"]
        if type(shift) not in (int, float) or not math.isfinite(shift):
            self.refuse_vae("shift_factor", shift, "give a number, 0 for none")


def dynamic_shift(scheduler: Any, grid: Grid, default_max_shift: float) -> float:
    """Compute the timestep shift mu of a flow-matching schedule from the number of image tokens.

    The shift is a linear function of the number of tokens (Esser et al. 2024, section 5.3.2).

    Args:
        scheduler: diffusers scheduler, whose config gives the ends of the linear function.
        grid: rows and columns of image tokens.
        default_max_shift: shift for ``max_image_seq_len`` tokens if the scheduler's config does not
            state it.
    """
    config = scheduler.config
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", default_max_shift)
    slope = (high - low) / (many - few)
    return grid.height * grid.width * slope + (low - slope * few)
