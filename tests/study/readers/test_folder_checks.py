"""Notes about folders of source images whose files are readable and still not as they should be."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.properties import with_built_in
from ldmprobe_core.study.readers.folder_checks import check_folder
from ldmprobe_core.study.readers.image_folder import image_names
from ldmprobe_core.study.sections import Images

SIZE = (16, 16)
PROPS = with_built_in(())


@pytest.fixture
def folder(tmp_path):
    """Four source images of 24 x 24 pixels, each with a depth map."""
    rng = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(tmp_path / f"{name}.png")
        np.save(tmp_path / f"{name}.depth.npy", rng.random((24, 24)).astype(np.float32))
    return tmp_path


def notes_of(folder):
    images = Images(folder=str(folder))
    return check_folder(images, image_names(images, PROPS), SIZE, PROPS).notes


def add_image(folder, size, **options):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "e.png", **options)
    np.save(folder / "e.depth.npy", rng.random(size).astype(np.float32))


def enlarge(folder):
    add_image(folder, (2, 60))


def rotate(folder):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    add_image(folder, (24, 24), exif=exif)


def scale(folder):
    np.save(folder / "b.depth.npy", 1000 * np.load(folder / "b.depth.npy"))


def shrink_map(folder):
    np.save(folder / "b.depth.npy", np.load(folder / "b.depth.npy")[::3, ::3])


def copy_map(folder):
    np.save(folder / "b.depth.npy", np.load(folder / "a.depth.npy"))


def misname_map(folder):
    add_image(folder, (24, 24))
    (folder / "e.png").rename(folder / "b_foreground.png")
    (folder / "e.depth.npy").rename(folder / "b_foreground.depth.npy")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (enlarge, ["1 of 5 source images is smaller than the model's, 16 x 16", "e.png"]),
        (rotate, ["1 of 5 source images is rotated by EXIF orientation", "e.png"]),
        (misname_map, ["may be maps are taken as source images", "property: b_foreground.png"]),
        (scale, ["of another scale", "as if their units differed: b.depth.npy"]),
        (shrink_map, ["1 of 4 depth maps is smaller than the model's images", "b.depth.npy"]),
        (copy_map, ["1 depth map equals another one, such as a.depth.npy and b.depth.npy"]),
    ],
)
def test_check_folder_notes(folder, change, words):
    assert notes_of(folder) == ()
    change(folder)
    notes = notes_of(folder)
    for word in words:
        assert any(word in note for note in notes), notes


@pytest.mark.parametrize(
    ("name", "is_noted"),
    [
        ("b_mask", True),
        ("mask_b", True),
        ("b-Mask", True),
        ("b_alpha", True),
        ("b_normals", True),
        ("b_normal", True),
        ("b_normals_x", True),
        ("b albedo", True),
        ("b_depth_map", True),
        ("edge-b", True),
        ("mask", False),
        ("unmasked", False),
        ("bmask", False),
        ("b_masked", False),
        ("the_mask_1994", False),
        ("b_side", False),
        ("e_mask", False),
    ],
)
def test_check_folder_notes_an_image_named_like_a_map_of_another_one(folder, name, is_noted):
    add_image(folder, (24, 24))
    (folder / "e.png").rename(folder / f"{name}.png")
    (folder / "e.depth.npy").rename(folder / f"{name}.depth.npy")
    assert any(note.endswith(f"its property: {name}.png") for note in notes_of(folder)) == is_noted


def test_check_folder_refuses_a_name_with_control_characters(folder):
    (folder / "a.png").rename(folder / "a\nb.png")
    with pytest.raises(UserError, match=r"the file name 'a\\nb\.png' has control characters"):
        notes_of(folder)


def test_check_folder_refuses_an_npy_file_with_more_than_its_array(folder):
    with (folder / "b.depth.npy").open("ab") as file:
        np.save(file, np.ones((24, 24), np.float32))
    with pytest.raises(UserError, match=r"b\.depth\.npy: the file is longer than its array\. Fix"):
        notes_of(folder)


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("foregound", r"foregound is no property that can have maps\. Fix: .* foreground, depth, "),
        ("Mask", r"Mask is no property that can have maps\. Fix"),
        ("detph", r"detph is no property that can have maps\. Fix"),
        ("segmentation", r"segmentation is no property that can have maps\. Fix"),
        (
            "normals",
            r"maps of normals are given by component \(normals_x, normals_y, normals_z\)\. Fix",
        ),
    ],
)
def test_an_image_named_like_a_map_of_an_unknown_property_is_refused(folder, word, problem):
    Image.new("L", (24, 24)).save(folder / f"c.{word}.png")
    with pytest.raises(
        UserError, match=rf"c\.{word}\.png: it is named like a map of c\.png, but {problem}"
    ):
        notes_of(folder)


def test_images_with_a_dot_and_maps_of_their_own_or_a_number_are_source_images(folder):
    add_image(folder, (24, 24))
    for suffix in ("png", "depth.npy"):
        (folder / f"e.{suffix}").rename(folder / f"c.side.{suffix}")
    assert notes_of(folder) == ()
    for path in folder.glob("*.depth.npy"):
        path.unlink()
    (folder / "c.side.png").rename(folder / "c.2.png")
    assert notes_of(folder) == ()


@pytest.mark.parametrize("word", ["edited", "v2", "png", "side", "Kopie", "2"])
def test_images_with_a_dot_and_a_word_that_names_no_map_are_source_images(folder, word):
    add_image(folder, (24, 24))
    for path in folder.glob("*.depth.npy"):
        path.unlink()
    (folder / "e.png").rename(folder / f"c.{word}.jpg")
    images = Images(folder=str(folder))
    names = ["a.png", "b.png", "c.png", "d.png", f"c.{word}.jpg"]
    assert image_names(images, PROPS) == sorted(names)
    notes = [note for note in notes_of(folder) if "source images of their own" in note]
    assert [f"c.{word}.jpg" in note for note in notes] == [True] * (word in "edited side Kopie")


@pytest.mark.parametrize(
    ("prop", "mark", "share", "is_noted"),
    [
        ("depth", 1e10, 0.1, True),
        ("depth", 65535, 0.1, True),
        ("depth", 0, 0.1, True),
        ("depth", -1, 0.1, True),
        ("depth", 9.5, 0.1, True),  # 5.5 from the nearest value; the others are within 2 and 4
        ("depth", 4.5, 0.1, False),
        ("depth", 0, 0.04, False),
        ("shading", 0, 0.5, False),
        ("shading", 65535, 0.1, True),
    ],
)
def test_check_folder_notes_values_that_may_stand_for_unmeasured_pixels(
    folder, prop, mark, share, is_noted
):
    rng = np.random.default_rng(2)
    for name in "abcd":
        values = 2 + 2 * rng.random(25 * 24).astype(np.float32)
        values[: int(share * values.size)] = mark
        np.save(folder / f"{name}.{prop}.npy", values[: 24 * 24].reshape(24, 24))
    found = [note for note in notes_of(folder) if "may stand for pixels" in note]
    assert len(found) == is_noted
    if is_noted:
        assert f"4 of 4 {prop} maps have one value in many pixels, {mark:g} in the" in found[0]
        assert f"give images.missing.{prop}: a.{prop}.npy, b" in found[0]
