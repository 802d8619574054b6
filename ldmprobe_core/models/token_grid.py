"""Conversion of a layer's output to a grid of image tokens, and changes to those tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Arrangement of a layer's tokens: text tokens first, then image tokens row by row.

    Attributes:
        height, width: rows and columns of image tokens.
        text: number of text tokens that precede the image tokens; 0 if there are none.
    """

    height: int
    width: int
    text: int = 0


def to_grid(output: Any, grid: Grid, item: int = 0) -> Tensor:
    """Convert a module's output to a grid of image tokens, (n, y, x, channel).

    Args:
        output: image tokens (n, token, channel) in row order, a feature map (n, channel, y, x), or
            a tuple or list of such tensors.
        grid: arrangement of the tokens.  Only the ratio of its height to its width is used, since
            layers differ in resolution.  Text tokens are removed.
        item: index of the image tensor if the output is a tuple or list.

    Returns:
        (n, y, x, channel), a view of the output where possible.

    Raises:
        ValueError: the output is neither tokens nor a feature map, or the number of its tokens does
            not fit the grid.
    """
    tensor = output[item] if isinstance(output, (tuple, list)) else output
    if not isinstance(tensor, Tensor) or tensor.ndim not in (3, 4):
        shape = f" of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else ""
        raise ValueError(
            f"the layer's output is a {type(tensor).__name__}{shape}, not tokens or a feature map"
        )
    if tensor.ndim == 4:
        return tensor.permute(0, 2, 3, 1)
    n, tokens, channels = tensor.shape
    if grid.text and tokens == grid.text + grid.height * grid.width:
        tensor = tensor[:, grid.text :]
        tokens -= grid.text
    columns = round(math.sqrt(tokens * grid.width / grid.height))
    if columns == 0 or tokens % columns or tokens // columns * grid.width != columns * grid.height:
        raise ValueError(
            f"the layer's {tokens} tokens do not fill a grid whose sides have the ratio "
            f"{grid.height} to {grid.width}"
        )
    return tensor.reshape(n, tokens // columns, columns, channels)


def mean_of_blocks(tokens: Tensor, side: int) -> Tensor:
    """Average a grid of tokens over square blocks.

    Args:
        tokens: (n, y, x, channel); y and x are multiples of the side.
        side: number of tokens down and across a block.

    Returns:
        (n, y / side, x / side, channel) float32.
    """
    blocks = tokens.unflatten(1, (-1, side)).unflatten(3, (-1, side))
    return blocks.float().mean((2, 4))


def change_grid(
    output: Any, grid: Grid, item: int, batch_copies: int, change: Callable[[Tensor], Tensor]
) -> Any:
    """Apply a function to the image tokens in a module's output, for conditional samples only.

    Args:
        output: output of the module, in a form that `to_grid` accepts.
        grid: arrangement of the tokens.
        item: index of the image tensor if the output is a tuple or list.
        batch_copies: number of copies of the batch in the output: 1, or 2 under guidance.  The last
            copy is the conditional one.
        change: function from tokens (n, y, x, channel) float32 to changed tokens of the same shape.
            Tokens that it returns unchanged keep their exact bits in the output.

    Returns:
        a copy of the output, in the same form and dtype.

    Raises:
        ValueError: the batch size is not a multiple of ``batch_copies``, or the output does not fit
            the grid.
    """
    parts = list(output) if isinstance(output, (tuple, list)) else [output]
    tensor = parts[item if isinstance(output, (tuple, list)) else 0]
    new = tensor.clone()
    view = to_grid(new, grid)
    if len(view) % batch_copies:
        raise ValueError(
            f"the output's batch size of {len(view)} is not a multiple of {batch_copies}"
        )
    n = len(view) // batch_copies
    old = view[-n:].float()
    view[-n:] += (change(old) - old).to(new.dtype)
    return _replaced(output, tensor, new)


def _replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """Replace a tensor wherever a module's output has it.

    A down block of a UNet returns its last tensor twice: for the next block, and among the tensors
    for the up blocks.
    """
    if isinstance(output, (tuple, list)):
        return type(output)(_replaced(part, old, new) for part in output)
    return new if output is old else output


def conditional_call(args: tuple, kwargs: dict, batch_copies: int) -> tuple[tuple, dict]:
    """Reduce the arguments of a denoiser call to the conditional part of the batch.

    Under guidance, tensors hold the batch twice: the unconditional copy, then the conditional one.

    Args:
        args, kwargs: arguments of the call; tensors in nested dicts are reduced too.
        batch_copies: number of copies of the batch in each tensor, 1 or 2.
    """

    def conditional(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 0 and batch_copies > 1 and len(value) > 1:
            return value[len(value) // batch_copies * (batch_copies - 1) :]
        if isinstance(value, dict):
            return {key: conditional(part) for key, part in value.items()}
        return value

    return tuple(conditional(a) for a in args), {k: conditional(v) for k, v in kwargs.items()}


def mean_embedding(text: Tensor, mask: Tensor | None) -> Tensor:
    """Average text embeddings over their tokens.

    Args:
        text: (n, token, channel).
        mask: (n, token), 1 for tokens of the prompt, 0 for those that fill it up to the longest
            prompt of the batch; None counts all tokens.

    Returns:
        (n, channel) float32.
    """
    if mask is None:
        return text.float().mean(1)
    weight = mask.float() / mask.float().sum(1, keepdim=True)
    return (text.float() * weight[:, :, None]).sum(1)


_PIXELS_PER_DECODE = 1 << 16
"""Limit on the total number of image pixels in one call of the VAE's decoder.

For example, 4 images of 128 x 128 or 16 of 64 x 64 pixels are decoded together.

The limit is for speed: the intermediate values of larger calls do not fit a CPU's cache, and each
image then takes a quarter longer.  An image with more pixels than this is decoded in a call by
itself.
"""


def images_per_decode(height: int, width: int) -> int:
    """Return the number of images of the given pixel size that one call of the VAE decodes."""
    return max(1, _PIXELS_PER_DECODE // (height * width))


def decoded_images(tensor: Tensor) -> np.ndarray:
    """Convert float images (n, rgb, y, x) in -1..1 to uint8 (n, y, x, rgb), as diffusers does."""
    unit = (tensor / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return (unit * 255).round().astype(np.uint8)


def pixel_tokens(
    images: np.ndarray, grid: tuple[int, int], dtype: torch.dtype = torch.float16
) -> Tensor:
    """Average images over the blocks of a token grid.

    Args:
        images: (n, y, x, rgb) uint8.
        grid: number of tokens down and across; they divide the height and width of the images.
        dtype: data type of the means.

    Returns:
        (n, *grid, rgb) in the data type, 0..1.
    """
    n, height, width, _ = images.shape
    blocks = images.reshape(n, grid[0], height // grid[0], grid[1], width // grid[1], 3)
    return torch.from_numpy(blocks.mean((2, 4)) / 255).to(dtype)
