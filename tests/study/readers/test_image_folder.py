"""Folders of images and maps: listing, cropping, formats."""

import os
import shutil

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.properties import with_built_in
from ldmprobe_core.study.readers.folder_checks import check_folder
from ldmprobe_core.study.readers.image_folder import (
    exact_map_properties,
    images_hash,
    list_images,
    map_path,
    read_image,
    read_map,
)
from ldmprobe_core.study.sections import Images

PROPS = with_built_in(())


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
    assert list_images(str(tmp_path), PROPS) == ["a.png", "c.jpg"]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp")
    with pytest.raises(UserError, match=r"a\.png and a\.webp have the same name"):
        list_images(str(tmp_path), PROPS)


def test_read_map_averages_measured_pixels_only(tmp_path):
    """8 x 8 to 4 x 4 by nothing but 2 x 2 blocks that agree: independent of the filter's taps."""
    rng = np.random.default_rng(0)
    values = rng.random((8, 8)) + 1
    values[:, :4] = 0
    np.save(tmp_path / "a.depth.npy", values)
    found = read_map(tmp_path / "a.depth.npy", "depth", (4, 4), missing=0)
    assert np.isnan(found[:, :2]).all()
    # Pillow's bilinear filter, halving: a triangle over four pixels, cut off at the map's edge
    # and at pixels that were not measured
    taps = np.array([0.125, 0.375, 0.375, 0.125])
    for row in range(4):
        for column in (2, 3):
            total = weight = 0
            for y, down in zip(range(2 * row - 1, 2 * row + 3), taps, strict=True):
                for x, across in zip(range(2 * column - 1, 2 * column + 3), taps, strict=True):
                    if 0 <= y < 8 and 4 <= x < 8:
                        total, weight = total + down * across * values[y, x], weight + down * across
            assert abs(found[row, column] - total / weight) < 1e-5
    whole = read_map(tmp_path / "a.depth.npy", "depth", (8, 8), missing=0)
    np.testing.assert_array_equal(whole, np.where(values, values, np.nan).astype(np.float32))
    values[:] = 0
    values[0, 0] = 1
    np.save(tmp_path / "a.depth.npy", np.pad(values, ((0, 16), (0, 16))))
    with pytest.raises(UserError, match=r"only 0\.17% of its pixels are measured.*Fix: remove"):
        read_map(tmp_path / "a.depth.npy", "depth", (24, 24), missing=0)


@pytest.fixture
def folder(tmp_path):
    """Four noisy images with depth and foreground maps, and files that systems leave."""
    rng = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{name}.png")
        np.save(tmp_path / f"{name}.depth.npy", rng.random((8, 8)))
        mask = (rng.random((8, 8)) > 0.5) * np.uint8(255)
        Image.fromarray(mask).save(tmp_path / f"{name}.foreground.png")
    for name in ("._b.png", ".DS_Store", "Thumbs.db", "._a.depth.npy"):
        (tmp_path / name).write_bytes(b"\0\1")
    (tmp_path / "e.png").mkdir()
    return tmp_path


def checked(folder, **settings):
    names = list_images(str(folder), PROPS)
    return check_folder(Images(folder=str(folder), **settings), names, (8, 8), PROPS)


def test_check_folder_of_whole_files_has_nothing_to_say(folder):
    check = checked(folder)
    assert check.notes == ()
    assert check.missing == {"foreground": 0, "depth": 0}


def _cut(path):
    path.write_bytes(path.read_bytes()[:60])


def _end_in_zeros(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))


def _save(values, name="b.depth.npy"):
    return lambda folder: np.save(folder / name, values)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: _cut(f / "b.png"), r"b\.png: not a complete image .PNG, 60 bytes"),
        (lambda f: _end_in_zeros(f / "b.png"), r"b\.png: not a complete image .PNG"),
        (lambda f: _end_in_zeros(f / "b.foreground.png"), r"b\.foreground\.png: not a map .PNG"),
        (lambda f: (f / "b.png").write_bytes(b""), r"b\.png: not a complete image .0 bytes"),
        (lambda f: Image.new("RGB", (8, 8)).save(f / "b.png"), r"b\.png: all pixels have the same"),
        (lambda f: shutil.copy(f / "b.png", f / "b0.webp"), r"b0\.webp: the same image as b\.png"),
        (lambda f: _cut(f / "b.depth.npy"), r"b\.depth\.npy: not a map .NPY, 60 bytes"),
        (lambda f: (_cut(f / "b.png"), _cut(f / "d.depth.npy"), _cut(f / "c.png")),
         r"b\.png: not a .*\. Other images with problems: c\.png, d\.png"),
        (_save(np.random.default_rng(0).random((8, 16))), r"b\.depth\.npy: the map has 8 x 16"),
        (_save(np.full((8, 8), np.inf)), r"b\.depth\.npy: some values are infinite"),
        (_save(np.arange(64).reshape(8, 8)), "64-bit integers, and a.depth.npy has floats, so th"),
        (lambda f: Image.fromarray(np.eye(8, dtype=np.uint8)).save(f / "b.foreground.png"),
         r"b\.foreground\.png: it has level 1, and a\.foreground\.png has level 255, so the maps"),
        (lambda f: [np.save(f / f"{name}.depth.npy", np.full((8, 8), 3.0)) for name in "abcd"],
         r"a\.depth\.npy: all measured pixels have the same value"),
        (lambda f: (f / "b.depth.npy").rename(f / "b.depth.NPY"), r"NPY: a depth map cannot"),
        (lambda f: (f / "b.depth.jpg").write_bytes(b""), r"b\.depth\.jpg: a depth map cannot"),
        (lambda f: (f / "b.Depth.png").write_bytes(b""), r"b\.Depth\.png: a depth map cannot"),
        (lambda f: (f / "c0.png").symlink_to(f / "gone.png"), r"c0\.png: cannot be read"),
        (lambda f: (f / "b.depth.tif").write_bytes(b""), r"b\.png has a second depth map, b"),
    ],
)  # fmt: skip
def test_check_folder_names_files_that_cannot_be_used(folder, damage, words):
    damage(folder)
    with pytest.raises(UserError, match=words) as caught:
        checked(folder)
    assert "Fix: " in str(caught.value)


def test_check_folder_notes_what_is_not_read_and_not_measured(folder):
    (folder / "f.heic").write_bytes(b"x")
    np.save(folder / "g.depth.npy", np.ones((8, 8)))
    values = np.load(folder / "b.depth.npy")
    values[:4] = 0
    np.save(folder / "b.depth.npy", values)
    np.save(folder / "c.depth.npy", np.ones((8, 8)))
    check = checked(folder, missing={"depth": 0.0, "foreground": 7.0})
    assert check.missing == {"foreground": 0, "depth": 0.125}
    words = "f.heic", "g.depth.npy", "foreground, but all pixels", "12.5% of the", "c.depth.npy"
    assert [word in note for note, word in zip(check.notes, words, strict=True)] == [True] * 5
    with pytest.raises(UserError, match=r"images\.missing has shading, but there are no shading"):
        checked(folder, missing={"shading": 0.0})


def test_check_folder_decodes_a_file_once_and_again_if_it_changed(folder, monkeypatch):
    checked(folder)
    decoded = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: decoded.append(a[0]) or original(*a, **k))
    checked(folder)
    assert decoded == []
    Image.effect_noise((8, 8), 50).save(folder / "b.png")
    checked(folder)
    assert {path.name for path in decoded} == {"b.png", "b.foreground.png"}


def test_images_hash_and_map_path_refuse_files_in_one_sentence(folder):
    names = list_images(str(folder), PROPS)
    assert exact_map_properties(Images(folder=str(folder)), names, PROPS) == ("foreground", "depth")
    before = images_hash(Images(folder=str(folder)), names, PROPS)
    (folder / ".DS_Store").unlink()
    assert images_hash(Images(folder=str(folder)), names, PROPS) == before
    (folder / "c.png").unlink()
    with pytest.raises(UserError, match=r"c\.png: cannot be read \(FileNotFoundError\)"):
        images_hash(Images(folder=str(folder)), names, PROPS)
    np.save(folder / "a.depth.npy", np.ones((8, 8)))
    (folder / "a.depth.exr").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png has a second depth map, a\.depth\.exr"):
        map_path(folder, "a.png", "depth")


@pytest.mark.parametrize("name", ["z.png", "a.depth.npy", "z.JPG"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_list_images_refuses_a_pipe_or_device_named_like_a_file(tmp_path, name, make):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    make(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: it is a pipe or a device\. Fix: "):
        list_images(str(tmp_path), PROPS)
