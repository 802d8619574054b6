"""Draws docs/architecture.svg: packages on their floors; an import may only point down.

    python docs/draw_architecture.py

The colours follow the reader's light or dark setting, so one file serves both.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

FIGURE = Path(__file__).with_name("architecture.svg")

Box = tuple[str, str, str]
"""Name of a package, its subject, and the libraries reserved for it."""

SURFACE: list[list[Box]] = [
    [("flows/", "Prefect flows, the ldmprobe command", "prefect, dask")],
    [("tasks/", "one thin Prefect task per unit of work", "prefect")],
    [("ldmprobe/", "public Python API: import ldmprobe as lp", "")],
]

CORE: list[list[Box]] = [
    [("tabletop", "renderer and training of the embedded model", "diffusers, transformers")],
    [("analysis", "scores to intervals, emergence, summary, report", "")],
    [("interventions", "edit activations towards a target map", "")],
    [("pipeline", "units of work: generate, label, accumulate, probe", "")],
    [
        ("models", "one diffusers pipeline", "diffusers, transformers"),
        ("labelers", "image to map or class", "transformers, diffusers"),
        ("probing", "arrays to probes, scores", "numpy, scipy, sklearn, torch"),
        ("storage", "one run on disk or S3", "fsspec, s3fs, obstore"),
    ],
    [("study", "YAML to Study, samples, batches, properties", "")],
    [("assets", "weights, configs, ready studies", ""), ("errors", "exceptions", "")],
]

WIDTH, MARGIN, HEIGHT, GAP = 900, 20, 54, 12
STYLE = """
  svg { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
  .page { fill: #ffffff; } .core { fill: #eef2f7; stroke: #8a97a8; }
  .box { fill: #ffffff; stroke: #4a6a94; stroke-width: 1.2; }
  .name { fill: #14304f; font-size: 15px; font-weight: 600; }
  .text { fill: #33404f; font-size: 12.5px; } .libraries { fill: #8a4b08; font-size: 11.5px; }
  .arrow { stroke: #4a6a94; stroke-width: 2; fill: none; } .head { fill: #4a6a94; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #10151c; } .core { fill: #18212c; stroke: #66758a; }
    .box { fill: #1f2b39; stroke: #7ea3d4; }
    .name { fill: #dce9f9; } .text { fill: #c3ccd8; } .libraries { fill: #f0b370; }
    .arrow { stroke: #7ea3d4; } .head { fill: #7ea3d4; }
  }
"""


def text(x: float, y: float, words: str, style: str, anchor: str = "start") -> str:
    """One line of text at pixel (x, y)."""
    return (
        f'<text class="{style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def floor(boxes: list[Box], left: float, right: float, top: float) -> list[str]:
    """Boxes of one floor, side by side; a floor of one box has its text on one line."""
    width = (right - left - GAP * (len(boxes) - 1)) / len(boxes)
    height = HEIGHT + 20 if len(boxes) > 2 else HEIGHT - 14
    lines = []
    for i, (name, subject, libraries) in enumerate(boxes):
        x = left + i * (width + GAP)
        lines.append(
            f'<rect class="box" x="{x:g}" y="{top:g}" width="{width:g}" '
            f'height="{height:g}" rx="6"/>'
        )
        if len(boxes) > 2:
            lines.append(text(x + width / 2, top + 22, name, "name", "middle"))
            lines.append(text(x + width / 2, top + 42, subject, "text", "middle"))
            lines.append(text(x + width / 2, top + 61, libraries, "libraries", "middle"))
        else:
            lines.append(text(x + 14, top + 25, name, "name"))
            lines.append(text(x + (134 if len(boxes) == 1 else 84), top + 25, subject, "text"))
            lines.append(text(x + width - 14, top + 25, libraries, "libraries", "end"))
    return lines


def draw() -> str:
    """The whole figure as SVG text."""
    left, right, top = MARGIN + 46, WIDTH - MARGIN, MARGIN + 8.0
    lines: list[str] = []
    for boxes in SURFACE:
        lines += floor(boxes, left, right, top)
        top += HEIGHT - 14 + GAP
    frame = top
    top += 34
    inner: list[str] = []
    for boxes in CORE:
        inner += floor(boxes, left + 14, right - 14, top)
        top += (HEIGHT + 20 if len(boxes) > 2 else HEIGHT - 14) + GAP
    lines.append(
        f'<rect class="core" x="{left:g}" y="{frame:g}" width="{right - left:g}" '
        f'height="{top - frame + 2:g}" rx="8"/>'
    )
    lines.append(text(left + 14, frame + 23, "ldmprobe_core", "name"))
    lines.append(
        text(
            right - 14,
            frame + 23,
            "boxes side by side do not import each other",
            "text",
            "end",
        )
    )
    lines += inner
    bottom = top + 2
    lines.append(f'<path class="arrow" d="M{MARGIN + 16} {MARGIN + 12} V{bottom - 8:g}"/>')
    lines.append(f'<path class="head" d="M{MARGIN + 9} {bottom - 10:g} h14 l-7 12 z"/>')
    middle = (MARGIN + bottom) / 2
    lines.append(
        f'<text class="text" transform="translate({MARGIN + 36} {middle:g}) rotate(-90)" '
        'text-anchor="middle">imports point down only</text>'
    )
    legend = (
        "orange: libraries reserved for these boxes; probing imports no other third-party library"
    )
    lines.append(text(left, bottom + 24, legend, "libraries"))
    height = bottom + 40
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        'aria-label="Packages of ldmprobe from top to bottom; imports point down only">'
    )
    page = f'<rect class="page" width="{WIDTH}" height="{height:g}" rx="10"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", page, *lines, "</svg>", ""])


if __name__ == "__main__":
    FIGURE.write_text(draw(), encoding="utf-8")
