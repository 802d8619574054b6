"""Residuals of the line along the floor edge, on drawn edges."""

import numpy as np
import pytest

from ldmprobe_core.study.prompt_sets import FLOOR_COLORS, WALL_COLORS
from ldmprobe_core.tabletop.measures.edges import (
    edge_colors,
    edge_residuals,
    floor_edge,
    line_residual,
)
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import sample_scene, scene_caption

BROWN, WHITE = FLOOR_COLORS["brown"], WALL_COLORS["white"]


def drawn(edge, size=64, shades=(0.6, 0.9)):
    """A floor below ``edge`` (x -> y in pixels) and a wall above, each pixel's colour by its area.

    The floor's shade falls to the right, as under a lamp.
    """
    fine = 16
    x, y = (np.arange(size * fine) + 0.5) / fine, (np.arange(size * fine) + 0.5) / fine
    wall = (y[:, None] < edge(x)[None]).astype(float)
    share = wall.reshape(size, fine, size, fine).mean((1, 3))[..., None]
    floor = np.array(BROWN) * np.linspace(*shades, size)[None, :, None]
    picture = share * np.array(WHITE) * 0.8 + (1 - share) * floor
    return np.rint(picture * 255).astype(np.uint8)


def residual_of(image, mask=None):
    hidden = np.zeros(image.shape[:2], bool) if mask is None else mask
    return line_residual(floor_edge(image, hidden, BROWN, WHITE))


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.8])
def test_line_residual_of_a_straight_edge_is_zero(slope):
    assert residual_of(drawn(lambda x: 30 + slope * (x - 32))) < 0.06


@pytest.mark.parametrize("flip", [1, -1])
def test_floor_edge_follows_a_steep_edge(flip):
    image = drawn(lambda x: 30 + 0.3 * (x - 32)).swapaxes(0, 1)[:, ::flip]
    assert residual_of(image) < 0.06


@pytest.mark.parametrize("amplitude", [0.5, 1.0, 2.0])
def test_line_residual_of_a_sine_is_its_root_mean_square(amplitude):
    image = drawn(
        lambda x: 30 + 0.2 * x + amplitude * np.sin(2 * np.pi * x / 16) * np.hypot(1, 0.2)
    )
    assert residual_of(image) == pytest.approx(amplitude / np.sqrt(2), rel=0.08)


def test_line_residual_of_a_corner_is_zero():
    image = drawn(lambda x: 40 - 0.4 * np.abs(x - 30))
    assert residual_of(image) < 0.1


def test_floor_edge_skips_columns_behind_the_object():
    image = drawn(lambda x: 30 + 0.2 * (x - 32))
    mask = np.zeros((64, 64), bool)
    mask[20:50, 20:40] = True
    image[mask] = (40, 40, 200)
    points = floor_edge(image, mask, BROWN, WHITE)
    assert not ((points[:, 0] > 20) & (points[:, 0] < 40)).any()
    np.testing.assert_allclose(points[:, 1], 30 + 0.2 * (points[:, 0] - 32), atol=0.2)
    assert residual_of(image, mask) < 0.06


def test_line_residual_of_too_few_points_is_nan():
    assert np.isnan(line_residual(np.zeros((15, 2))))
    nothing = np.full((64, 64, 3), 255, np.uint8)
    assert np.isnan(residual_of(nothing))


def test_edge_colors_needs_a_wall_of_another_hue():
    assert edge_colors("a red cube on a brown floor, white wall") == (BROWN, WHITE)
    assert edge_colors("a red cube on a brown floor") is None
    assert edge_colors("an orange on a gray floor, white wall") is None  # brightness alone


def test_edge_residuals_of_renders_are_small():
    scenes = [sample_scene(6_000_000 + i) for i in range(60)]
    pictures = [render(scene) for scene in scenes]
    images = np.stack([np.rint(p.rgb * 255).astype(np.uint8) for p in pictures])
    masks = np.stack([p.foreground > 0 for p in pictures])
    residuals, tried = edge_residuals(images, masks, [scene_caption(s) for s in scenes])
    assert len(residuals) > 0.5 * tried > 15
    assert np.median(residuals) < 0.2
    assert residuals.mean() < 0.3
