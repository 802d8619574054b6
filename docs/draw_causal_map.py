"""Draw ``causal-map.png``: the causal maps of `interventions-summary.json`, one below the other."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ldmprobe_core.analysis.report.intervention_figures import causal_map
from ldmprobe_core.interventions.results import InterventionSummary

DOCS = Path(__file__).parent
FIGURE = DOCS / "causal-map.png"
MAPS = {"foreground": "foreground-map", "depth": "depth-map"}
DPI = 110


def committed_map(name: str) -> InterventionSummary:
    """Return a committed causal map; its measures are empty, and its duration is 0."""
    content = json.loads((DOCS / "interventions-summary.json").read_text("utf-8"))
    content = content["interventions"][name]
    for site in content["sites"]:
        for effect in site["effects"].values():
            effect["measures"] = {}
    del content["command"]
    return InterventionSummary.model_validate({**content, "seconds": 0.0})


def picture(figure: Figure) -> Image.Image:
    """Return a figure as an image of `DPI` pixels an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return Image.open(buffer).convert("RGB")


def draw() -> Image.Image:
    """Return the maps, each below the name of its property."""
    parts = []
    for title, name in MAPS.items():
        figure = causal_map(committed_map(name))
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.3)
        figure.subplots_adjust(top=1 - 0.6 / (height + 0.3))
        figure.text(0.01, 1 - 0.1 / height, title, ha="left", va="top", fontsize=11)
        parts.append(np.asarray(picture(figure)))
    return Image.fromarray(np.concatenate(parts))


if __name__ == "__main__":
    draw().save(FIGURE, optimize=True)
