"""Names and shapes of probe inputs, without an import of torch."""

from __future__ import annotations

from typing import NamedTuple

LATENTS = "latents"
"""Name of the denoiser's input, a control that is probed like a layer; no module has this name."""


class LayerShape(NamedTuple):
    """Size of one layer's activations: tokens down and across, and channels."""

    y: int
    x: int
    channels: int
