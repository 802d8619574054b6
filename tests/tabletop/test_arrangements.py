"""Source images of several objects: their files, and the promises about their distances."""

import csv

import numpy as np
import pytest
from PIL import Image

from benchmarks.pairwise_depth import Pairs
from ldmprobe_core.errors import UserError
from ldmprobe_core.tabletop.arrangements import FIRST_SEED, write_arrangements
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import arrangement_caption, sample_arrangement

COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of rendered arrangements."""
    written = tmp_path_factory.mktemp("arrangements") / "several_objects"
    write_arrangements(written, COUNT)
    return written


def test_write_arrangements_writes_image_depth_masks_and_caption(folder):
    arrangement = sample_arrangement(FIRST_SEED + 7)
    exact = render(arrangement)
    image = np.asarray(Image.open(folder / "images/arrangement-0007.png"))
    np.testing.assert_array_equal(image, np.rint(exact.rgb * 255))
    depth = np.load(folder / "images/arrangement-0007.depth.npy")
    np.testing.assert_allclose(depth, exact.depth - exact.depth.mean(), atol=1e-6)
    masks = np.load(folder / "objects/arrangement-0007.npy")
    np.testing.assert_array_equal(masks, exact.objects > 0.5)
    with (folder / "captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list((folder / "images").glob("*.png"))) == COUNT
    assert rows[7] == {
        "image": "arrangement-0007.png", "caption": arrangement_caption(arrangement)
    }  # fmt: skip


def test_write_arrangements_has_pairs_whose_order_size_and_height_hardly_tell(folder):
    """Bounds are loose, for the chance of 60 images; they hold for other seeds too."""
    drawn = [sample_arrangement(FIRST_SEED + i) for i in range(COUNT)]
    above_floor = [item.place[2] > 0.01 for one in drawn for item in one.items]
    assert 0.3 < np.mean(above_floor) < 0.7
    assert {len(one.items) for one in drawn} == {2, 3}
    names = [f"arrangement-{i:04d}" for i in range(COUNT)]
    masks = [np.load(folder / f"objects/{name}.npy") for name in names]
    depth = np.stack([np.load(folder / f"images/{name}.depth.npy") for name in names])
    pairs = Pairs.of_images(depth, masks)
    assert len(np.unique(pairs.image)) >= COUNT / 3
    assert np.median(np.abs(pairs.difference)) > 0.1  # log z: 10 percent
    areas = pairs.scores([-one.sum((1, 2)) for one in masks])
    rows = [np.array([-np.nonzero(mask)[0].mean() for mask in one]) for one in masks]
    assert 0.3 < areas.mean() < 0.7
    assert 0.3 < pairs.scores(rows).mean() < 0.7
    # Among pairs at any heights, the lower object is often the nearer one.
    assert Pairs.of_images(depth, masks, 1.0).scores(rows).mean() > 0.6


def test_write_arrangements_refuses_a_folder_with_files(folder):
    with pytest.raises(UserError, match=r"folder: .* is not empty\. Fix: remove it"):
        write_arrangements(folder, 3)
