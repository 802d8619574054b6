"""Names and shapes of what is probed, known without torch."""

from __future__ import annotations

from typing import NamedTuple

LATENTS = "latents"
"""The denoiser's own input, probed like a layer as a control; no module has this name."""


class LayerShape(NamedTuple):
    """Size of one layer's activations: tokens down and across, and channels."""

    y: int
    x: int
    channels: int
