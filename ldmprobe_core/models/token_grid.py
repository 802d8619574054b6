"""Tokens as a grid of height x width, and edits of them in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Where tokens lie: height and width that they tile, and text tokens that may come before."""

    height: int
    width: int
    text: int = 0


def to_grid(output: Any, grid: Grid, item: int = 0) -> Tensor:
    """A module's output as (n, y, x, channel).

    Args:
        output: tokens (n, token, channel), row by row, or a feature map (n, channel, y, x); of a
            tuple, its ``item``.
        grid: what the tokens tile, at any scale; where there are text tokens too, they come first
            and are dropped.

    Raises:
        ValueError: the output is neither.
    """
    tensor = output[item] if isinstance(output, (tuple, list)) else output
    if not isinstance(tensor, Tensor) or tensor.ndim not in (3, 4):
        shape = f" of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else ""
        raise ValueError(f"it gives a {type(tensor).__name__}{shape}, not tokens or a map")
    if tensor.ndim == 4:
        return tensor.permute(0, 2, 3, 1)
    n, tokens, channels = tensor.shape
    if grid.text and tokens == grid.text + grid.height * grid.width:
        tensor = tensor[:, grid.text :]
        tokens -= grid.text
    across = round(math.sqrt(tokens * grid.width / grid.height))
    if across == 0 or tokens % across or tokens // across * grid.width != across * grid.height:
        raise ValueError(f"its {tokens} tokens do not tile {grid.height} x {grid.width}")
    return tensor.reshape(n, tokens // across, across, channels)


def change_grid(
    output: Any, grid: Grid, item: int, batch_copies: int, change: Callable[[Tensor], Tensor]
) -> Any:
    """A module's output with the conditional half of its image tokens changed.

    Args:
        output, grid, item: as for `to_grid`.
        batch_copies: copies of the batch in ``output``; the last one is the conditional.
        change: tokens (n, y, x, channel) float32 to tokens of the same shape; unchanged values stay
            equal bit for bit.

    Raises:
        ValueError: the batch does not divide into that many copies.
    """
    parts = list(output) if isinstance(output, (tuple, list)) else [output]
    tensor = parts[item if isinstance(output, (tuple, list)) else 0]
    new = tensor.clone()
    view = to_grid(new, grid)
    if len(view) % batch_copies:
        raise ValueError(f"a batch of {len(view)} does not hold {batch_copies} copies")
    n = len(view) // batch_copies
    old = view[-n:].float()
    view[-n:] += (change(old) - old).to(new.dtype)
    if not isinstance(output, (tuple, list)):
        return new
    parts[item] = new
    return type(output)(parts)
