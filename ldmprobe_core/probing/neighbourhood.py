"""Neighbourhoods of tokens, the features of probes on latents and on predicted clean pixels.

A layer of the denoiser sees the surroundings of a token, so probes of single latent pixels would be
too weak a control.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.study.layers import INPUT_CONTROLS


def probe_features(name: str, activations: np.ndarray) -> np.ndarray:
    """Return features for probes: activations of a layer, or neighbourhoods for input controls.

    Args:
        name: name of a probe input, which is a layer or one of `INPUT_CONTROLS`.
        activations: (sample, y, x, channel).

    Returns:
        the activations unchanged; for an input control, the neighbourhoods of its tokens.
    """
    size = INPUT_CONTROLS.get(name)
    return activations if size is None else neighbourhoods(activations, size)


def neighbourhoods(tokens: np.ndarray, size: int) -> np.ndarray:
    """Concatenate the channels of all tokens around each token; tokens beyond the edge are zero.

    Args:
        tokens: (n, y, x, channel).
        size: odd height and width of the neighbourhood in tokens.

    Returns:
        (n, y, x, size * size * channel) of the same dtype; channels vary fastest.
    """
    reach = size // 2
    padded = np.pad(tokens, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    # The axes of the windows are (n, y, x, channel, down, across).
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(*tokens.shape[:3], -1)
