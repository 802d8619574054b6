"""Tests of images that are put together as one picture."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps

from ldmprobe_core.analysis.report.image_grid import colored, image_grid, tiles


def plain(value, height, width):
    return np.full((height, width, 3), value, np.uint8)


def test_tiles_are_resized_by_repeating_pixels_with_transparent_gaps_between():
    left = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    canvas = tiles([[left, plain(7, 1, 2)], [plain(9, 4, 8), plain(11, 2, 4)]], 40)
    # 40 x 20 pixels an image, and a gap of a twentieth of its width
    assert canvas.shape == (42, 82, 4)
    np.testing.assert_array_equal(canvas[:20, :40, :3], left.repeat(10, 0).repeat(10, 1))
    for value, y, x in ((7, 0, 42), (9, 22, 0), (11, 22, 42)):
        assert (canvas[y : y + 20, x : x + 40] == [value, value, value, 255]).all()
    assert not canvas[20:22].any()
    assert not canvas[:, 40:42].any()


def test_larger_images_are_reduced_to_pixels_that_are_evenly_chosen():
    image = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None], (6, 6, 3))
    assert tiles([[image]], 2)[:, 0, 0].tolist() == [1, 4]


def test_colors_span_the_range_and_unmeasured_pixels_are_grey():
    viridis = colormaps["viridis"].with_extremes(bad="0.6")
    values = np.array([[-1.0, 0.0, 2.0, 4.0, 9.0, np.nan]])
    found = colored(values, viridis, 0.0, 4.0)[0]
    expected = [viridis(x, bytes=True)[:3] for x in (0.0, 0.0, 0.5, 1.0, 1.0)]
    np.testing.assert_array_equal(found[:5], expected)
    assert found[5].tolist() == [153, 153, 153]
    assert found.dtype == np.uint8


def test_grid_has_a_pixel_of_the_figure_for_each_pixel_and_its_texts():
    figure = image_grid([[plain(1, 8, 8)] * 3] * 2, 0.4, ["a", "b", "c"], ["x", "y"], fontsize=7)
    assert figure.get_size_inches() * 150 == pytest.approx([186, 123])
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "b", "c", "x", "y"]
