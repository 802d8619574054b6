"""Tokens as a grid of height x width, and edits of them in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Height and width that image tokens tile, and the number of text tokens before them."""

    height: int
    width: int
    text: int = 0


def to_grid(output: Any, grid: Grid, item: int = 0) -> Tensor:
    """Convert a module's output to (n, y, x, channel).

    Args:
        output: tokens (n, token, channel), row by row, or a feature map (n, channel, y, x), or a
            tuple of them.
        grid: height and width that the tokens tile, at any scale; text tokens come first and are
            dropped.
        item: index of the image in a tuple.

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
    columns = round(math.sqrt(tokens * grid.width / grid.height))
    if columns == 0 or tokens % columns or tokens // columns * grid.width != columns * grid.height:
        raise ValueError(f"its {tokens} tokens do not tile {grid.height} x {grid.width}")
    return tensor.reshape(n, tokens // columns, columns, channels)


def change_grid(
    output: Any, grid: Grid, item: int, batch_copies: int, change: Callable[[Tensor], Tensor]
) -> Any:
    """Return a module's output with the conditional copy of its image tokens changed.

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
