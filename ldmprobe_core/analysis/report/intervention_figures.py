"""Figures and animations of the images that an intervention edited."""

from __future__ import annotations

import io
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ldmprobe_core.interventions.results import INTERVENTIONS_GROUP, read_intervention
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import property_of

_TITLES = {"edited": "edited", "random": "random change", "shuffled": "shuffled-label\nprobes"}
_ROWS = 4
"""Largest number of samples in a before-and-after figure."""


def before_and_after(run: Run, name: str) -> Figure:
    """Draw one edited sample per row: unedited image, target map, edited image, and controls."""
    data = run.open(f"{INTERVENTIONS_GROUP}/{name}")
    index = [int(i) for i in data.sample.values[:_ROWS]]
    unedited = run.read("images", "image", sample=index)
    conditions = [str(v) for v in data.condition.values]
    first = data.isel(target=0, sample=slice(0, _ROWS)).load()
    titles = ["unedited", f"target\n{first.target.values}", "edited", "its map",
              *(_TITLES[v] for v in conditions[1:])]  # fmt: skip
    colormap = property_of(read_intervention(run, name).prop).drawing.colormap
    figure = Figure(figsize=(1.3 * len(titles), 1.3 * len(index) + 0.5))
    grid = figure.subplots(len(index), len(titles), squeeze=False)
    for i, axes in enumerate(grid):
        images = first.image.values[:, i]
        panels = [
            unedited[i],
            first.target_map.values[i],
            images[0],
            first.label.values[0, i],
            *images[1:],
        ]
        for panel, image in zip(axes, panels, strict=True):
            panel.imshow(image, cmap=colormap)
            panel.set_xticks([])
            panel.set_yticks([])
        axes[0].set_ylabel(f"sample {index[i]}", fontsize=7)
    for panel, title in zip(grid[0], titles, strict=True):
        panel.set_title(title, fontsize=8)
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    return figure


def strip(run: Run, name: str) -> Figure:
    """Draw one sample's target maps in a row, and below each the image that was edited to it."""
    data = run.open(f"{INTERVENTIONS_GROUP}/{name}").isel(sample=0).load()
    count = data.sizes["target"]
    figure = Figure(figsize=(1.3 * count, 3.0))
    grid = figure.subplots(2, count, squeeze=False)
    for t in range(count):
        grid[0, t].imshow(data.target_map.values[t], cmap="gray")
        grid[0, t].set_title(str(data.target.values[t]), fontsize=7)
        grid[1, t].imshow(data.image.values[0, t])
    for panel in grid.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    grid[0, 0].set_ylabel("target", fontsize=8)
    grid[1, 0].set_ylabel("edited", fontsize=8)
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    return figure


def _frames(run: Run, name: str) -> list[np.ndarray]:
    """Return animation frames: the first sample's edited images, forward and back over targets.

    Small images are enlarged by an integer factor, to a width of at most 256 pixels.
    """
    images = run.read(f"{INTERVENTIONS_GROUP}/{name}", "image", condition=0, sample=0)
    factor = max(1, 256 // images.shape[2])
    frames = [image.repeat(factor, 0).repeat(factor, 1) for image in images]
    return frames + frames[-2:0:-1]


def animation(run: Run, name: str, milliseconds: int = 200) -> bytes:
    """Encode the first sample's edited images, one for each target, as an animated GIF."""
    frames = [Image.fromarray(frame) for frame in _frames(run, name)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:],
                   duration=milliseconds, loop=0)  # fmt: skip
    return buffer.getvalue()


def film(run: Run, name: str, ffmpeg: str, milliseconds: int = 200) -> bytes:
    """Encode the first sample's edited images, one for each target, as an MP4 film.

    The codec is H.264, because every browser plays it.

    Args:
        run: run that contains the intervention.
        name: name of the intervention.
        ffmpeg: path of the ffmpeg program.
        milliseconds: duration of each frame.

    Raises:
        subprocess.CalledProcessError: ffmpeg failed, for instance because it has no H.264 encoder.
    """
    frames = np.stack(_frames(run, name) * 3)
    height, width = frames.shape[1:3]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        subprocess.run(
            [
                ffmpeg, "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
                "-s", f"{width}x{height}", "-r", f"{1000 / milliseconds:g}", "-i", "-",
                "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path),
            ],
            input=frames.tobytes(),
            check=True,
            capture_output=True,
        )  # fmt: skip
        return path.read_bytes()
