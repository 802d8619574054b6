"""Names and shapes of probe inputs, in a module that does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

LATENTS = "latents"
"""Name of the denoiser's input as a probe input: a control that is probed like a layer."""

CLEAN_PIXELS = "clean_pixels"
"""Name of the predicted clean image's pixels, averaged over blocks, as a probe input."""

INPUT_CONTROLS = {LATENTS: 5, CLEAN_PIXELS: 3}
"""Controls that are probed like layers, but are no layers of the denoiser.

The value is the height and width of the neighbourhood of each token that their probes read, because
a layer of the denoiser sees the surroundings of a token too.
"""

VAE = "vae."
"""Prefix of layer names in the VAE's decoder; names of layers in the denoiser have no prefix."""

POINT = "@"
"""Character between the name of an attention layer and that of a capture point inside it."""

WORDS, TOKENS = "words", "tokens"
"""Names of the capture points of attention maps, over text tokens and over image tokens."""


_SHARED_PART = ".transformer_blocks.0"
"""Part that the names of most attention layers share, and their short form leaves out."""


def short_layer(layer: str) -> str:
    """Shorten a layer's name for display, by removing the part that all attention layers share."""
    return layer.replace(_SHARED_PART, "")


def matching_layers(names: Iterable[str], glob: str) -> list[str]:
    """Return the layers that a glob matches: by name, else by short name, else by a parent module.

    Reports show short names, such as ``mid_block.attentions.0.attn1``, and the documentation the
    module that the layer is in, such as ``mid_block.attentions.0``.

    Args:
        names: names of layers.
        glob: glob over one of these forms; without ``@`` it matches no points inside layers.
    """
    layers = [name for name in names if (POINT in name) == (POINT in glob)]
    return (
        [name for name in layers if fnmatchcase(name, glob)]
        or [name for name in layers if fnmatchcase(short_layer(name), glob)]
        or [name for name in layers if fnmatchcase(name, f"{glob}.*")]
    )


def is_attention_map(layer: str) -> bool:
    """Return whether a layer name denotes attention maps (suffix ``@words`` or ``@tokens``).

    These maps are computed beside the denoiser's own, so they can be read but not edited.
    """
    return layer.endswith((POINT + WORDS, POINT + TOKENS))


class LayerShape(NamedTuple):
    """Shape of one layer's activations: height and width in tokens, and number of channels."""

    y: int
    x: int
    channels: int

    def as_probed(self, name: str) -> LayerShape:
        """Return the shape of the activations that a probe of a layer or input control reads.

        For an input control, the channels are those of all tokens in the neighbourhood of a token.

        Args:
            name: name of a layer or of one of the `INPUT_CONTROLS`.
        """
        return self._replace(channels=self.channels * INPUT_CONTROLS.get(name, 1) ** 2)
