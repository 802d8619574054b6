"""Rendered scenes on disk, written block by block by several processes.

Each array is one ``.npy`` file in the dataset's folder, for reading by memory map: ``rgb`` uint8
(scene, y, x, rgb); ``foreground`` uint8 (scene, y, x), covered fraction x 255; ``depth`` float16
(scene, y, x), log z; ``shading`` uint8 (scene, y, x), x 255; ``normal`` int8 (scene, y, x, axis),
x 127, axes and antialiasing as in `Rendering.normal` (unit vectors before rounding, zero in the
sky); ``category`` uint8 (scene,), an index into `CATEGORIES`.  Scene i has seed i; captions follow
from the seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.tabletop import IMAGE_SIZE
from ldmprobe_core.tabletop.render import Rendering, render
from ldmprobe_core.tabletop.scenes import sample_scene, scene_caption

BLOCK = 500
"""Number of scenes in a block, which one process renders."""

_PIXELS = (IMAGE_SIZE, IMAGE_SIZE)
_ARRAYS: dict[str, tuple[tuple[int, ...], type]] = {
    "rgb": ((*_PIXELS, 3), np.uint8),
    "foreground": (_PIXELS, np.uint8),
    "depth": (_PIXELS, np.float16),
    "shading": (_PIXELS, np.uint8),
    "normal": ((*_PIXELS, 3), np.int8),
    "category": ((), np.uint8),
}


def quantize(rendering: Rendering) -> dict[str, np.ndarray]:
    """Convert a rendering's maps to the dataset's dtypes."""
    return {
        "rgb": np.rint(rendering.rgb * 255).astype(np.uint8),
        "foreground": np.rint(rendering.foreground * 255).astype(np.uint8),
        "depth": rendering.depth.astype(np.float16),
        "shading": np.rint(rendering.shading * 255).astype(np.uint8),
        "normal": np.rint(rendering.normal * 127).astype(np.int8),
    }


def _render_block(folder: Path, start: int, stop: int) -> None:
    """Render the scenes with seeds ``start`` to ``stop - 1``, and mark the block as complete."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _ARRAYS}
    for seed in range(start, stop):
        scene = sample_scene(seed)
        for name, values in quantize(render(scene)).items():
            arrays[name][seed] = values
        arrays["category"][seed] = CATEGORIES.index(scene.category)
    for array in arrays.values():
        array.flush()
    (folder / f"done-{start:06d}").touch()


def render_dataset(
    folder: Path,
    scenes: int,
    processes: int = os.cpu_count() or 1,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Render scenes 0..``scenes`` - 1 into ``folder``, except for blocks that are complete.

    Args:
        processes: number of rendering processes.
        progress: called after each block with the number of scenes that this call has rendered.

    Raises:
        UserError: ``folder`` contains a dataset of another size, or one that lacks an array.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = any(folder.glob("done-*"))
    for name, (shape, dtype) in _ARRAYS.items():
        path = folder / f"{name}.npy"
        if begun and not path.exists():
            raise UserError(f"{path} is missing from an earlier dataset. Fix: remove the folder")
        if not path.exists():
            np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=(scenes, *shape)).flush()
        elif (rendered := len(np.load(path, mmap_mode="r"))) != scenes:
            raise UserError(
                f"{path}: it has {rendered} scenes, another number than is asked for ({scenes}). "
                f"Fix: ask for {rendered} scenes, or give another folder"
            )
    blocks = [(a, min(a + BLOCK, scenes)) for a in range(0, scenes, BLOCK)]
    blocks = [b for b in blocks if not (folder / f"done-{b[0]:06d}").exists()]
    done = 0
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_render_block, folder, *block): block for block in blocks}
        for finished in as_completed(futures):
            finished.result()
            start, stop = futures[finished]
            done += stop - start
            progress(done)


class Dataset:
    """Memory-mapped arrays of a rendered dataset, as attributes.

    Args:
        held_out: number of scenes, the last ones, that are not trained on.

    Attributes:
        train, held_out: indices of the training scenes and of the others.

    Raises:
        UserError: the scenes are not rendered, or no more of them than are held out.
    """

    def __init__(self, folder: Path, held_out: int) -> None:
        lacking = [name for name in _ARRAYS if not (folder / f"{name}.npy").is_file()]
        if lacking:
            raise UserError(
                f"{folder}: there are no rendered scenes ({lacking[0]}.npy is missing). Fix: add "
                "render to --stages, or give the working folder that has them (--work)"
            )
        self.rgb, self.foreground, self.depth, self.shading, self.normal, self.category = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS
        )
        self.scenes = len(self.category)
        starts = range(0, self.scenes, BLOCK)
        missing = sum(not (folder / f"done-{start:06d}").exists() for start in starts)
        if missing:
            raise UserError(
                f"{folder}: {missing} of {len(starts)} blocks of scenes are not rendered. Fix: add "
                "render to --stages"
            )
        if self.scenes <= held_out:
            raise UserError(
                f"{folder}: {self.scenes} scenes leave none to train on, since {held_out} are held "
                "out. Fix: render more into another folder (--scenes, --work)"
            )
        self.train = range(self.scenes - held_out)
        self.held_out = range(self.scenes - held_out, self.scenes)

    def captions(self) -> list[str]:
        """Captions of all scenes, in order."""
        return [scene_caption(sample_scene(seed)) for seed in range(self.scenes)]


def shuffled_batches(n: int, size: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Endless iterator over batches of indices below ``n``, shuffled in each epoch.

    A batch depends on its number only, so a resumed training gets the same batches.

    Args:
        size: indices a batch.
        start: number of the first batch.

    Raises:
        UserError: there are fewer indices than a batch has.
    """
    if n < size:
        raise UserError(
            f"{n} scenes to train on are fewer than a batch ({size}). Fix: render more scenes"
        )
    batches_an_epoch = n // size
    step = start
    while True:
        order = np.random.default_rng([seed, step // batches_an_epoch]).permutation(n)
        for batch in range(step % batches_an_epoch, batches_an_epoch):
            yield order[batch * size : (batch + 1) * size]
            step += 1
