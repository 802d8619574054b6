"""Learning curve of the embedded model: image quality and probe scores over its training."""

from __future__ import annotations

import math
from typing import Any

CURVE_STEPS = ("3", "15")
"""Sampling steps whose scores are in the curve."""
CURVE_SCORES = {"foreground": "Dice", "depth": "partial", "shading": "partial"}


def learning_curve_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown section of the model card: table of the milestones, and how early depth is learned.

    Args:
        rows: one a milestone, in the order of training, from weights that were never trained on:
            ``samples``, ``scores`` (by property and step: ``mean``, ``low``, ``high``), and where
            they were measured ``accuracy``, ``frechet``, ``edge``, the last two also "of renders";
            `benchmarks/learning_curve.py` writes them.

    Returns:
        lines of text; none if there are no rows.
    """
    if not rows:
        return []
    names = [f"{name}, step {step}" for name in CURVE_SCORES for step in CURVE_STEPS]
    return [
        "## Learning curve",
        "",
        "What the denoiser draws, and what linear probes read from its activations, by the number",
        "of training samples it has seen (averaged weights). Of generated images: the judge's",
        "accuracy (chance is 1 in 12), the Frechet distance of its features from those of",
        "renderings, and the residual of the floor's edge from a straight line. Of probes: the",
        "default study (96 test images, the layer chosen on validation images, 95 % intervals),",
        "Dice of the foreground, rank correlation of depth and shading given the position in the",
        "image. Labels are of each model's own images: untrained, it draws noise, and the shading",
        "that the labeler sees in noise can be read from the noise.",
        "",
        f"| samples | judge | Frechet | edge, px | {' | '.join(names)} |",
        "| --- " * (4 + len(names)) + "|",
        *(_row(row) for row in rows),
        *_renderings(rows, len(names)),
        "",
        *_depth_sentences(rows),
        "",
    ]


def half_way(values: list[float]) -> int | None:
    """Index of the first value from which half of the gain from first to last is kept.

    Returns:
        None if the last value is not above the first.
    """
    if not values[-1] > values[0]:
        return None
    middle = (values[0] + values[-1]) / 2
    below = [index for index, value in enumerate(values) if not value >= middle]
    return below[-1] + 1


def _row(row: dict[str, Any]) -> str:
    """Table row of one milestone."""
    accuracy = row.get("accuracy", {}).get("all", math.nan)
    drawn = (accuracy, row.get("frechet", math.nan), row.get("edge", math.nan))
    cells = [f"{row['samples']:,}", *("" if math.isnan(v) else f"{v:.2f}" for v in drawn)]
    for name in CURVE_SCORES:
        for step in CURVE_STEPS:
            score = row["scores"][name][step]
            cells.append(f"{score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}]")
    return f"| {' | '.join(cells)} |"


def _renderings(rows: list[dict[str, Any]], empty: int) -> list[str]:
    """Table row of held-out renderings, whose measures a perfect model would reach."""
    measured = [row for row in rows if "frechet of renders" in row]
    if not measured:
        return []
    last = measured[-1]
    values = f"{last['frechet of renders']:.2f} | {last['edge of renders']:.2f}"
    return [f"| renderings |  | {values} |{'  |' * empty}"]


def _depth_sentences(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences on how early in training probes read depth at the first step of the curve."""
    scores = [row["scores"]["depth"][CURVE_STEPS[0]] for row in rows]
    reached = half_way([score["mean"] for score in scores])
    first, last = (
        f"{s['mean']:.2f} [{s['low']:.2f}, {s['high']:.2f}]" for s in scores[:: len(scores) - 1]
    )
    text = (
        "How much must the model have learned before a probe finds depth in it? At step "
        f"{CURVE_STEPS[0]} the partial correlation is {first} with random weights and {last} at "
        "the end"
    )
    if reached is None:
        return [text + ": training does not raise it."]
    row, score = rows[reached], scores[reached]
    text += (
        f"; half of the difference is there from {row['samples']:,} samples on "
        f"({score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}])"
    )
    if "accuracy" in row:
        text += f", when the judge names {row['accuracy']['all']:.0%} of the images"
    return [text + "."]
