"""Edges of the luminance."""

import numpy as np
import pytest

from ldmprobe_core.labelers.edges import gradient_edges


def step_image(low, high, size=64):
    """An image whose right half is brighter."""
    image = np.full((1, size, size, 3), low, np.uint8)
    image[:, :, size // 2 :] = high
    return image


@pytest.mark.parametrize("size", [64, 256])
def test_gradient_edges_finds_a_step_as_wide_as_theory_says(size):
    """A step of height h, blurred with sigma, has the gradient of a Gaussian of area h.

    Sigma times the gradient at distance d is h exp(-d^2 / 2 sigma^2) / sqrt(2 pi), so that it
    exceeds 8 for d < sigma sqrt(2 log(h / (8 sqrt(2 pi)))).
    """
    height, sigma = 100, size / 64
    reach = sigma * np.sqrt(2 * np.log(height / (8 * np.sqrt(2 * np.pi))))
    # The step lies half a pixel to the left of the first bright pixel.
    distance = np.abs(np.arange(size) + 0.5 - size // 2)
    edges = gradient_edges(step_image(50, 150, size))
    assert edges.dtype == bool
    assert (edges == edges[:, :1]).all()
    sure = np.abs(distance - reach) > 0.5
    np.testing.assert_array_equal(edges[0, 0][sure], (distance < reach)[sure])


def test_gradient_edges_leaves_out_steps_of_low_contrast_and_equal_luma():
    # The largest normalised gradient of a step of height h is h / sqrt(2 pi), below 8 for h < 20.
    assert not gradient_edges(step_image(100, 118)).any()
    assert gradient_edges(step_image(100, 124)).any()
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[:, :, :32, 0], image[:, :, 32:, 1] = 0.587 * 200, 0.299 * 200
    assert not gradient_edges(image).any()


def test_gradient_edges_of_an_image_do_not_depend_on_its_batch():
    images = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3)).astype(np.uint8)
    np.testing.assert_array_equal(gradient_edges(images)[1:2], gradient_edges(images[1:2]))
