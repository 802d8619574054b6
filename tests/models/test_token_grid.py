"""Tokens laid out on a grid."""

import numpy as np
import pytest
import tiny_models
import torch

from ldmprobe_core.models.token_grid import Grid, change_grid, pixel_tokens, to_grid


def test_to_grid_of_an_image_that_is_not_square():
    tokens = torch.arange(32.0).reshape(1, 32, 1)
    grid = to_grid(tokens, Grid(16, 8))
    assert grid.shape == (1, 8, 4, 1)
    assert grid[0, 1, 0, 0] == 4  # row by row
    for wrong in (torch.zeros(1, 30, 1), torch.zeros(4), "text"):
        with pytest.raises(ValueError, match=r"fill|not tokens"):
            to_grid(wrong, Grid(16, 8))


def test_to_grid_drops_text_tokens_that_come_first():
    tokens = torch.arange(39.0).reshape(1, 39, 1)
    grid = to_grid((None, tokens), Grid(8, 4, text=7), item=1)
    assert grid.shape == (1, 8, 4, 1)
    assert grid[0, 0, 0, 0] == 7


@pytest.mark.parametrize("batch_copies", [1, 2])
def test_change_grid_changes_conditional_image_tokens_only(batch_copies):
    text = 3
    output = torch.arange(2.0 * batch_copies * (text + 8) * 5).reshape(
        2 * batch_copies, text + 8, 5
    )
    changed = change_grid((None, output), Grid(4, 2, text), 1, batch_copies, lambda h: h + 1)[1]
    expected = output.clone()
    for n in range(2 * batch_copies - 2, 2 * batch_copies):
        for token in range(text, text + 8):
            expected[n, token] += 1
    torch.testing.assert_close(changed, expected)
    maps = torch.zeros(2 * batch_copies, 5, 4, 2)
    changed = change_grid(maps, Grid(8, 4), 0, batch_copies, lambda h: h + torch.arange(5.0))
    assert (changed[-2:] == torch.arange(5.0)[None, :, None, None]).all()
    assert (changed[:-2] == 0).all()
    assert (maps == 0).all()  # the output itself is not modified
    assert torch.equal(change_grid(output, Grid(11, 1), 0, batch_copies, lambda h: h), output)


def test_pixel_tokens_are_block_means():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    found = pixel_tokens(images, (4, 3)).numpy()
    assert found.dtype == np.float16
    for n, y, x in np.ndindex(2, 4, 3):
        block = images[n, 2 * y : 2 * y + 2, 4 * x : 4 * x + 4].astype(float)
        np.testing.assert_allclose(found[n, y, x], block.mean((0, 1)) / 255, atol=5e-4)


def test_change_grid_changes_both_outputs_of_a_down_block():
    """A down block returns its last tensor for the next block, and again for an up block."""
    torch.manual_seed(0)
    unet = tiny_models.unet().eval()
    given, edited = [], []

    def zero(_module, _inputs, output):
        given.append(output[0])
        edited.append(change_grid(output, Grid(4, 4), 0, 1, torch.zeros_like))
        return edited[-1]

    skips = []
    unet.down_blocks[0].register_forward_hook(zero)
    for block in unet.up_blocks:
        block.register_forward_pre_hook(
            lambda _module, _args, kwargs: skips.extend(kwargs["res_hidden_states_tuple"]),
            with_kwargs=True,
        )
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    with torch.no_grad():
        unet(torch.randn(1, 4, size, size), 1, torch.randn(1, 3, width))
    assert given[0].abs().min() > 0
    assert any(skip.shape == given[0].shape and not skip.any() for skip in skips)
    assert not any(torch.equal(skip, given[0]) for skip in skips if skip.shape == given[0].shape)
    assert type(edited[0][1]) is tuple
