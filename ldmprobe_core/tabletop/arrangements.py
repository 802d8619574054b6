"""Source images of two or three objects, with exact depth and a mask for each object.

    python -m ldmprobe_core.tabletop.arrangements FOLDER [--images 400] [--size 64]

FOLDER then has

* ``images/NAME.png``: the images, 8-bit RGB;
* ``images/NAME.depth.npy``: exact depth, (y, x) float32: log z less its mean in the image, because
  a labeler's depth is relative too;
* ``objects/NAME.npy``: masks of the objects, (object, y, x) bool, True where an object covers more
  than half of the pixel;
* ``captions.csv``: the caption of each image.

The folder ``images`` serves as ``images.folder`` of a study, such as
``studies/several_objects.yaml``, which gives one caption to all images.  The masks are read by
``benchmarks/pairwise_depth.py``.  Rendering needs ``ldmprobe[tabletop]``.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from ldmprobe_core.errors import UserError
from ldmprobe_core.tabletop import IMAGE_SIZE
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import arrangement_caption, sample_arrangement

FIRST_SEED = 8_000_000
"""Seed of the first arrangement."""

IMAGES = 400
"""Default number of images."""

MASK_FOLDER = "objects"
"""Name of the folder of the objects' masks, beside the folder of the images."""


def write_arrangements(folder: Path, count: int, size: int = IMAGE_SIZE) -> None:
    """Render arrangements with the seeds from `FIRST_SEED` on, and write their files.

    Args:
        folder: folder to create.
        count: number of images.
        size: height and width of the images in pixels.

    Raises:
        UserError: the folder exists and is not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"folder: {folder} is not empty. Fix: remove it, or name another")
    images, objects = folder / "images", folder / MASK_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    objects.mkdir()
    captions = []
    for i in range(count):
        arrangement = sample_arrangement(FIRST_SEED + i)
        rendering = render(arrangement, size)
        stem = f"arrangement-{i:04d}"
        Image.fromarray(np.rint(rendering.rgb * 255).astype(np.uint8)).save(images / f"{stem}.png")
        depth = rendering.depth - rendering.depth.mean()
        np.save(images / f"{stem}.depth.npy", depth.astype(np.float32))
        np.save(objects / f"{stem}.npy", rendering.objects > 0.5)
        captions.append((f"{stem}.png", arrangement_caption(arrangement)))
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *captions])


def render_from_command_line() -> None:
    """Render the images that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--size", type=int, default=IMAGE_SIZE, help="height and width in pixels")
    args = parser.parse_args()
    try:
        write_arrangements(args.folder, args.images, args.size)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    render_from_command_line()
