"""Position term of probes: the training mean of the label at the position of a token.

Labels have a mean map (a floor is nearer at the bottom of the image).  Without a position term, a
linear probe spends a part of its weights on that map, and its control on the labels of other images
still scores as high as the map itself.  A probe with a position term predicts

    position term + activation . weight + bias,

so that its weights are fitted to the rest of the label: to the label minus the term in a ridge
probe, and with the term as an offset of the logit in a logistic probe.

Positions are blocks of tokens, at most `MOST_POSITIONS` down and across.  The sums of activations
at each position, which a fit from stored sums needs, then stay small on fine token grids.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logit

from ldmprobe_core.study.batching import MOST_POSITIONS

SMALLEST_SHARE = 0.01
"""Lower bound of mean foreground fractions before their logit; the upper bound is 1 minus it."""


def token_positions(grid: tuple[int, int]) -> np.ndarray:
    """Position index of every token, (y, x) int; positions are numbered row by row.

    Args:
        grid: number of tokens down and across.
    """
    down, across = (np.arange(n) * min(n, MOST_POSITIONS) // n for n in grid)
    return down[:, None] * min(grid[1], MOST_POSITIONS) + across


def position_means(tokens: np.ndarray) -> np.ndarray:
    """Average a map's token values within each position, where a position is a block of tokens.

    Args:
        tokens: values of the tokens, (y, x).

    Returns:
        (position,) float64.
    """
    positions = token_positions((tokens.shape[0], tokens.shape[1])).ravel()
    return np.bincount(positions, tokens.ravel()) / np.bincount(positions)


def position_term(tokens: np.ndarray, output: str) -> np.ndarray:
    """Compute the position term of a probe from the training mean map, (y, x) float64.

    Args:
        tokens: block means of the training mean map, (y, x).
        output: ``logit`` for a probe that predicts logits of a mask; otherwise the term is in the
            units of the label.
    """
    means = position_means(tokens)
    if output == "logit":
        means = logit(np.clip(means, SMALLEST_SHARE, 1 - SMALLEST_SHARE))
    return np.asarray(means[token_positions((tokens.shape[0], tokens.shape[1]))])
