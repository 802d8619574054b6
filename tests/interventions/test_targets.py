"""Target maps, against slow loops."""

import os

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.targets import Target, require_aim, resolve_target, target_map


def shift_by_loop(label, dx, dy):
    height, width = label.shape
    out = np.zeros_like(label)
    for y in range(height):
        for x in range(width):
            a, b = y - dy, x - dx
            if label.dtype != bool:
                a, b = min(max(a, 0), height - 1), min(max(b, 0), width - 1)
            if 0 <= a < height and 0 <= b < width:
                out[y, x] = label[a, b]
    return out


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-2, 4), (0, -5), (0, 0)])
def test_target_map_shift_equals_a_loop(dx, dy):
    rng = np.random.default_rng(3)
    mask, depth = rng.random((20, 10)) > 0.6, rng.random((20, 10)).astype(np.float32)
    target = Target(dx=dx / 10, dy=dy / 20)
    np.testing.assert_array_equal(target_map(mask, target), shift_by_loop(mask, dx, dy))
    np.testing.assert_allclose(target_map(depth, target), shift_by_loop(depth, dx, dy), atol=1e-6)


def test_target_map_mirror_and_scale():
    mask = np.zeros((20, 20), bool)
    mask[4:8, 2:6] = True
    np.testing.assert_array_equal(target_map(mask, Target(mirror=True)), mask[:, ::-1])
    scaled = target_map(mask, Target(scale=2.0))
    assert scaled.sum() == 4 * mask.sum()
    np.testing.assert_allclose(np.argwhere(scaled).mean(0), np.argwhere(mask).mean(0), atol=0.6)
    depth = np.random.default_rng(0).random((8, 6))
    np.testing.assert_allclose(target_map(depth, Target(mirror=True)), depth[:, ::-1], atol=1e-9)


@pytest.mark.parametrize(
    ("dx", "words"),
    [
        (0.01, r"the sample's own label, moved by less than .* .shift 0\.01, 0.*more"),
        (0, r"the target is the sample's own label .shift 0, 0.*more"),
        (0.875, "the same at all"),
    ],
)
def test_require_aim_refuses_targets_that_no_edit_can_lead_to(dx, words):
    labels = np.zeros((2, 8, 16), bool)
    labels[:, 2:5, 3:6] = True
    target = Target(dx=dx)
    with pytest.raises(UserError, match=rf"targets: in each of the 2 samples .*{words}"):
        require_aim(target, labels, np.stack([target_map(label, target) for label in labels]))
    labels[1, 2:5, 0] = True  # this part is still in the image after a shift by 14 pixels
    moved = np.stack([target_map(label, Target(dx=0.875)) for label in labels])
    require_aim(Target(dx=0.875), labels, moved)


@pytest.mark.parametrize("dx", [0.03, -0.03])
@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_require_aim_refuses_a_shift_by_less_than_half_a_pixel(dtype, dx):
    labels = (np.random.default_rng(5).random((2, 8, 16)) > 0.5).astype(dtype)
    for target, refused in ((Target(dx=dx), True), (Target(dx=dx, mirror=True), False)):
        maps = np.stack([target_map(label, target) for label in labels])
        if refused:
            with pytest.raises(UserError, match=r"own label, moved by less than half a pixel \("):
                require_aim(target, labels, maps)
        else:
            require_aim(target, labels, maps)


def test_target_map_shifts_masks_by_whole_pixels_at_the_border_too():
    mask = np.ones((4, 16), bool)
    # 16 dx is 1.3 and 0.3 pixels, which round to 1 and 0.
    for dx, lost in ((1.3 / 16, 1), (-1.3 / 16, 1), (0.3 / 16, 0), (-0.3 / 16, 0)):
        assert (~target_map(mask, Target(dx=dx))).sum() == 4 * lost
        assert (~target_map(mask.T, Target(dy=dx))).sum() == 4 * lost


def test_target_map_from_a_file(tmp_path):
    mask = np.zeros((8, 6), bool)
    mask[2:4, 1:3] = True
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "m.png")
    np.save(tmp_path / "m.npy", np.random.default_rng(0).random((8, 6)).astype(np.float32))
    label = np.ones((8, 6), bool)
    np.testing.assert_array_equal(target_map(label, Target(file=str(tmp_path / "m.png"))), mask)
    depth = target_map(np.ones((8, 6), np.float32), Target(file=str(tmp_path / "m.npy")))
    np.testing.assert_allclose(depth, np.load(tmp_path / "m.npy"), atol=1e-6)


def test_target_map_refuses_files_that_are_no_map_of_the_image(tmp_path):
    mask = np.zeros((8, 6), bool)
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "m.png")
    label = np.ones((8, 6), bool)
    with pytest.raises(UserError, match="8 x 6 pixels, but the images have 8 x 8"):
        target_map(np.ones((8, 8), bool), Target(file=str(tmp_path / "m.png")))
    with pytest.raises(UserError, match=r"needs .*m\.png.* give a \.npy file"):
        target_map(np.ones((8, 6), np.float32), Target(file=str(tmp_path / "m.png")))
    np.save(tmp_path / "n.npy", np.array([[np.nan, 1.0], [2.0, np.nan]]))
    with pytest.raises(UserError, match=r"target\.file: 2 pixels are NaN .*Fix: give every"):
        target_map(np.ones((2, 2), np.float32), Target(file=str(tmp_path / "n.npy")))
    with pytest.raises(UserError, match="no such file"):
        target_map(label, Target(file=str(tmp_path / "none.png")))
    (tmp_path / "t.png").write_text("text")
    with pytest.raises(UserError, match="Fix: give a PNG image or a NPY array"):
        target_map(label, Target(file=str(tmp_path / "t.png")))


def test_target_is_a_file_or_a_transformation():
    with pytest.raises(ValidationError, match="both a file and a transformation"):
        Target(file="m.png", dx=0.1)


def test_resolve_target_hashes_the_contents(tmp_path):
    path = tmp_path / "m.npy"
    hashes = []
    for value in (0.0, 1.0):
        np.save(path, np.full((2, 2), value))
        hashes.append(resolve_target(Target(file=str(path))).content_hash)
    assert hashes[0] != hashes[1]
    with pytest.raises(UserError, match="no such file"):
        resolve_target(Target(file=str(tmp_path / "none.npy")))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_resolve_target_refuses_what_is_no_file(tmp_path, make):
    make(tmp_path / "map.png")
    with pytest.raises(UserError, match=r"^target\.file: no such file .*map\.png.* Fix: "):
        resolve_target(Target(file=str(tmp_path / "map.png")))


def test_target_map_tilt_and_stretch_have_closed_forms():
    depth = np.random.default_rng(2).random((6, 5))
    slope = np.array([-0.5, -0.25, 0.0, 0.25, 0.5]) * 3 * depth.std()
    np.testing.assert_allclose(target_map(depth, Target(tilt=3.0)), depth + slope, rtol=1e-12)
    stretched = target_map(depth, Target(stretch=9.0))
    spread = 9 * depth.std()
    ends = depth.mean() - spread, depth.mean() + spread
    np.testing.assert_allclose((stretched.min(), stretched.max()), ends)
    assert np.corrcoef(stretched.ravel(), depth.ravel())[0, 1] == pytest.approx(1)
    assert str(Target(mirror=True, tilt=-2.0)) == "mirror, tilt -2"
    with pytest.raises(UserError, match=r"no values to tilt or stretch \(tilt 1\)"):
        target_map(depth > 0.5, Target(tilt=1.0))
