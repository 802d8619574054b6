"""Figures and animations of the images that an intervention edited."""

from __future__ import annotations

import io
import subprocess
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ldmprobe_core.analysis.controls.wording import metric_title
from ldmprobe_core.analysis.report.image_grid import colored, image_grid
from ldmprobe_core.analysis.report.intervention_text import (
    agreement_title,
    clear_of_zero,
    effect_sign,
    site_layer,
)
from ldmprobe_core.analysis.report.style import (
    CLEAN_COLOR,
    DECODED_COLOR,
    INK,
    OTHER_COLORS,
    PROBE_COLOR,
    SCORE_COLORMAP,
)
from ldmprobe_core.interventions.null_directions import NULLS
from ldmprobe_core.interventions.results import (
    INTERVENTIONS_GROUP,
    InterventionSummary,
    read_intervention,
)
from ldmprobe_core.interventions.spec import EDITED, ERASURES, PROBE_EDITS
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import property_of

_COLORS = (PROBE_COLOR, DECODED_COLOR, *OTHER_COLORS[:2], CLEAN_COLOR)
_ROWS = 4
"""Largest number of samples in a before-and-after figure."""
_LEAST_RANGE = 0.05
"""Least effect that has the strongest colour of a causal map."""

_FRAME = 0.9
"""Width and height of the frame in a cell of a causal map, in cells."""


def before_and_after(run: Run, name: str) -> Figure:
    """Draw one edited sample per row: unedited image, target map, edited image, and null edits.

    Of several sites and doses, the one with the largest effect is shown: the largest rise of the
    score, or the largest fall for an erasure.
    """
    data, where = _strongest(run, name)
    index = [int(i) for i in data.sample.values[:_ROWS]]
    unedited = run.read("images", "image", sample=index)
    conditions = [str(v) for v in data.condition.values]
    first = data.isel(target=0, sample=slice(0, _ROWS)).load()
    spec = read_intervention(run, name)
    aim = (
        f"target\n{first.target.values}" if spec.method in PROBE_EDITS else str(first.target.values)
    )
    edited = "erased" if spec.method in ERASURES else "edited"
    titles = ["unedited", aim, edited, "its map",
              *(NULLS[v].title.replace(" ", "\n", 1) for v in conditions[1:])]  # fmt: skip
    colormap = property_of(spec.prop).drawing.colormap
    rows = []
    for i in range(len(index)):
        images = first.image.values[:, i]
        aimed, found = (
            _in_own_range(maps, colormap)
            for maps in (first.target_map.values[i], first.label.values[0, i])
        )
        rows.append([unedited[i], aimed, images[0], found, *images[1:]])
    figure = image_grid(rows, 1.25, titles, [f"sample {i}" for i in index], fontsize=7)
    figure.suptitle(where, fontsize=8, y=1 + 0.5 / figure.get_figheight(), va="bottom")
    return figure


def _in_own_range(values: np.ndarray, colormap: str) -> np.ndarray:
    """Colour a map in the range of its own values, (y, x) to (y, x, rgb)."""
    defined = values[np.isfinite(values)]
    low, high = (defined.min(), defined.max()) if len(defined) else (0.0, 1.0)
    return colored(values, colormap, float(low), float(high))


def _strongest(run: Run, name: str) -> tuple[Any, str]:
    """Return an intervention's data at the layers, steps and dose with the largest mean effect.

    An erasure is meant to lower the score, so its largest effect is the lowest difference.

    Returns:
        the dataset without the axes site and dose, and the name of the site and dose.
    """
    data = run.open(f"{INTERVENTIONS_GROUP}/{name}")
    gain = (data.score.isel(condition=0, measure=0) - data.unedited.isel(measure=0)).load()
    sign = effect_sign(read_intervention(run, name).method)
    best = (sign * gain.mean(("target", "sample"))).fillna(-np.inf).values
    site, dose = np.unravel_index(best.argmax(), best.shape)
    chosen = data.isel(site=int(site), dose=int(dose))
    text = str(chosen.site.values)
    if np.isfinite(float(chosen.dose)):
        text += f", dose {float(chosen.dose):g}"
    return chosen, text


def causal_map(summary: InterventionSummary) -> Figure:
    """Draw a causal map: probe scores beside effects of edits, by layer and window of steps.

    Left: scores of the unedited run's probes.  Right: effects of edits in one layer and one window;
    a frame marks an effect whose interval is clear of zero.
    """
    sites = summary.sites
    layers = list(dict.fromkeys(site.layers[0] for site in sites))
    windows = list(dict.fromkeys((site.first, site.last) for site in sites))
    decodable = np.full((len(layers), len(windows)), np.nan)
    effect, frames = decodable.copy(), []
    for site in sites:
        cell = layers.index(site.layers[0]), windows.index((site.first, site.last))
        if site.decodable is not None and site.decodable.mean is not None:
            decodable[cell] = site.decodable.mean
        effect[cell] = np.nan if site.used.mean is None else site.used.mean
        if clear_of_zero(site.used):
            frames.append(cell)
    metric = metric_title(summary.metric)
    # A map of few windows is wide enough for the titles of its two panels.
    figure = Figure(figsize=(max(3.2 + 1.5 * len(windows), 9.0), 1.6 + 0.34 * len(layers)))
    left, right = figure.subplots(1, 2, sharey=True)
    # The colours of a map of tiny effects would look like those of large ones.
    largest = np.nanmax(np.abs(effect), initial=_LEAST_RANGE)
    against = "null edit" if "orthogonal" in sites[0].effects else "unedited"
    _grid(figure, left, decodable, f"decodable: {metric} of probes", {"cmap": SCORE_COLORMAP})
    limits = {"cmap": "PuOr_r", "vmin": -largest, "vmax": largest}
    title = f"used: {agreement_title(summary)}, less {against}"
    if effect_sign(summary.intervention.method) < 0:
        title += "\n(a use lowers it)"
    _grid(figure, right, effect, title, limits)
    for row, column in frames:
        # Full frames would share lines, and seem to be around the cells between them too.
        corner, side = (column - _FRAME / 2, row - _FRAME / 2), _FRAME
        right.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=INK, linewidth=1.5))
    names = [site_layer(next(s for s in sites if s.layers[0] == name)) for name in layers]
    left.set_yticks(range(len(layers)), names, fontsize=8)
    for panel in (left, right):
        panel.set_xticks(range(len(windows)), [f"{a}-{b}" for a, b in windows], fontsize=8)
        panel.set_xlabel("edited steps", fontsize=8)
    figure.tight_layout()
    return figure


def _grid(figure: Figure, panel: Any, values: np.ndarray, title: str, how: dict[str, Any]) -> None:
    """Draw one heatmap with its values written into the cells, and a colour bar."""
    image = panel.imshow(values, aspect="auto", **how)
    figure.colorbar(image, ax=panel, pad=0.02)
    panel.set_title(title, fontsize=8)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            panel.text(
                column, row, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=7,
                color="white" if dark else INK,
            )  # fmt: skip


def dose_response(summary: InterventionSummary) -> Figure:
    """Draw agreement with the target against dose, for the edit and for every null edit."""
    figure = Figure(figsize=(5.2, 3.2))
    axes = figure.subplots()
    doses = np.array([site.dose for site in summary.sites], float)
    for condition, color in zip(summary.sites[0].effects, cycle(_COLORS), strict=False):
        intervals = [site.effects[condition].mean for site in summary.sites]
        mean, low, high = (
            np.array([getattr(value, end) for value in intervals], float)
            for end in ("mean", "low", "high")
        )
        title = condition if condition == EDITED else NULLS[condition].title
        axes.plot(doses, mean, color=color, marker="o", markersize=3, label=title)
        axes.fill_between(doses, low, high, color=color, alpha=0.2, linewidth=0)
    if summary.unedited.mean is not None:
        axes.axhline(summary.unedited.mean, color="0.4", linestyle=":", label="unedited")
    axes.set_xscale("log")
    axes.set_xticks(doses, [f"{dose:g}" for dose in doses])
    axes.minorticks_off()
    axes.set_xlabel("dose: amplitude of the target, in standard deviations of the prediction")
    axes.set_ylabel(agreement_title(summary))
    axes.legend(fontsize=8, frameon=False)
    return figure


def strip(run: Run, name: str) -> Figure:
    """Draw one sample's target maps in a row, and below each map the image edited towards it."""
    data = _strongest(run, name)[0].isel(sample=0).load()
    targets = [_in_own_range(one, "gray") for one in data.target_map.values]
    titles = [str(name) for name in data.target.values]
    rows = [targets, list(data.image.values[0])]
    return image_grid(rows, 1.25, titles, ["target", "edited"], fontsize=7)


def _frames(run: Run, name: str) -> list[np.ndarray]:
    """Return animation frames: the first sample's edited images in target order, then reversed.

    Small images are enlarged by an integer factor, to a width of at most 256 pixels.
    """
    images = _strongest(run, name)[0].image.isel(condition=0, sample=0).values
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
