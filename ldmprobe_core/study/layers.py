"""Names and shapes of probe inputs, in a module that does not import torch."""

from __future__ import annotations

from typing import NamedTuple

LATENTS = "latents"
"""Name of the denoiser's input as a probe input: a control that is probed like a layer."""


class LayerShape(NamedTuple):
    """Shape of one layer's activations: height and width in tokens, and number of channels."""

    y: int
    x: int
    channels: int
