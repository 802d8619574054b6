"""Tokens laid out on a grid."""

import pytest
import torch

from ldmprobe_core.models.token_grid import Grid, to_grid


def test_to_grid_of_an_image_that_is_not_square():
    tokens = torch.arange(32.0).reshape(1, 32, 1)
    grid = to_grid(tokens, Grid(16, 8))
    assert grid.shape == (1, 8, 4, 1)
    assert grid[0, 1, 0, 0] == 4  # row by row
    for wrong in (torch.zeros(1, 30, 1), torch.zeros(4), "text"):
        with pytest.raises(ValueError, match=r"tile|not tokens"):
            to_grid(wrong, Grid(16, 8))


def test_to_grid_drops_text_tokens_that_come_first():
    tokens = torch.arange(39.0).reshape(1, 39, 1)
    grid = to_grid((None, tokens), Grid(8, 4, text=7), item=1)
    assert grid.shape == (1, 8, 4, 1)
    assert grid[0, 0, 0, 0] == 7
