"""Rendered scenes on disk: made once, by several processes, resumed by block.

One ``.npy`` file an array under the dataset's folder, readable by memory map: ``rgb`` uint8
(scene, y, x, rgb); ``foreground`` uint8 (scene, y, x), share of the pixel x 255; ``depth`` float16
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

from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.tabletop import IMAGE_SIZE
from ldmprobe_core.tabletop.render import Rendering, render
from ldmprobe_core.tabletop.scenes import sample_scene, scene_caption

BLOCK = 500
"""Scenes rendered between two completion marks."""

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
    """A rendering's maps in the dataset's dtypes."""
    return {
        "rgb": np.rint(rendering.rgb * 255).astype(np.uint8),
        "foreground": np.rint(rendering.foreground * 255).astype(np.uint8),
        "depth": rendering.depth.astype(np.float16),
        "shading": np.rint(rendering.shading * 255).astype(np.uint8),
        "normal": np.rint(rendering.normal * 127).astype(np.int8),
    }


def _render_block(folder: Path, start: int, stop: int) -> None:
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
    """Render scenes 0..``scenes`` into ``folder``; blocks that are done already are kept.

    Args:
        progress: called with the number of scenes finished by this call, after each block.

    Raises:
        ValueError: ``folder`` holds a dataset of another size or without one of the arrays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = any(folder.glob("done-*"))
    for name, (shape, dtype) in _ARRAYS.items():
        path = folder / f"{name}.npy"
        if begun and not path.exists():
            raise ValueError(f"{path} is missing from a dataset made earlier: remove the folder")
        if not path.exists():
            np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=(scenes, *shape)).flush()
        elif len(np.load(path, mmap_mode="r")) != scenes:
            raise ValueError(f"{path} holds another number of scenes than {scenes}: remove it")
    blocks = [(a, min(a + BLOCK, scenes)) for a in range(0, scenes, BLOCK)]
    blocks = [b for b in blocks if not (folder / f"done-{b[0]:06d}").exists()]
    done = 0
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_render_block, folder, *block): block for block in blocks}
        for finished in as_completed(waiting):
            finished.result()
            start, stop = waiting[finished]
            done += stop - start
            progress(done)


class Dataset:
    """Memory-mapped arrays of a rendered dataset, as attributes; the last ``held_out`` are kept
    apart from training."""

    def __init__(self, folder: Path, held_out: int) -> None:
        self.rgb, self.foreground, self.depth, self.shading, self.normal, self.category = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS
        )
        self.scenes = len(self.category)
        self.train = range(self.scenes - held_out)
        self.held_out = range(self.scenes - held_out, self.scenes)

    def captions(self) -> list[str]:
        """The caption of every scene."""
        return [scene_caption(sample_scene(seed)) for seed in range(self.scenes)]


def shuffled_batches(n: int, size: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Endless batches of indices below ``n``, each epoch a new shuffle; ``start`` skips batches.

    A batch depends on its number only, so a resumed training sees what an undisturbed one sees.
    """
    a_pass = n // size
    step = start
    while True:
        order = np.random.default_rng([seed, step // a_pass]).permutation(n)
        for within in range(step % a_pass, a_pass):
            yield order[within * size : (within + 1) * size]
            step += 1
