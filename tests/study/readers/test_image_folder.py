"""Folders of images and maps: listing, cropping, formats."""

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.readers.image_folder import list_images, read_image, read_map


def test_read_image_and_read_map_crop_alike(tmp_path):
    """40 x 80 to 16 x 16: the middle 40 x 40, whatever the format."""
    y, x = np.mgrid[0:40, 0:80].astype(np.float32)
    Image.fromarray(np.stack([y, x, x], -1).astype(np.uint8)).save(tmp_path / "p.png")
    np.save(tmp_path / "p.depth.npy", x)
    picture = read_image(tmp_path / "p.png", (16, 16))
    depth = read_map(tmp_path / "p.depth.npy", "depth", (16, 16))
    expected = 20 + (np.arange(16) + 0.5) * 2.5 - 0.5
    np.testing.assert_allclose(depth[8], expected, atol=0.3)
    np.testing.assert_allclose(picture[8, :, 1], expected, atol=1)
    mask = np.zeros((40, 80), np.uint8)
    mask[:, 40:] = 255
    Image.fromarray(mask).save(tmp_path / "p.foreground.png")
    found = read_map(tmp_path / "p.foreground.png", "foreground", (16, 16))
    np.testing.assert_array_equal(found, np.arange(16)[None].repeat(16, 0) >= 8)


def test_read_map_of_a_colour_exr_and_read_image_of_a_rotated_photograph(tmp_path):
    rgb = np.random.default_rng(0).random((6, 4, 3)).astype(np.float32)
    OpenEXR.File({}, {"RGB": rgb}).write(str(tmp_path / "c.exr"))
    found = read_map(tmp_path / "c.exr", "shading", (6, 4))
    np.testing.assert_allclose(found, rgb.mean(-1), rtol=1e-5)
    picture = np.arange(24 * 3, dtype=np.uint8).reshape(6, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # held a quarter turn to the right
    Image.fromarray(picture).save(tmp_path / "t.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "t.png", (4, 6)), np.rot90(picture, k=-1))


def test_list_images_skips_hidden_files_and_refuses_two_of_one_stem(tmp_path):
    for name in ("a.png", "._b.png", "c.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert list_images(str(tmp_path)) == ["a.png", "c.jpg"]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp")
    with pytest.raises(UserError, match=r"a\.png and a\.webp would share their maps"):
        list_images(str(tmp_path))
