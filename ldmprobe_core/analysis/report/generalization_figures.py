"""Figures and table of the generalization analyses: transfer, learning curves, hold-out."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ldmprobe_core.analysis.controls.wording import metric_title
from ldmprobe_core.analysis.generalization.records import AnalysesRecord
from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report.style import DECODED_COLOR, PROBE_COLOR, SCORE_COLORMAP
from ldmprobe_core.analysis.report.text import number

_COLORS = (DECODED_COLOR, PROBE_COLOR)
"""Colours of the learning curves at the onset step and the last step."""


def generalization_figure(
    prop: str, analyses: AnalysesRecord, limits: tuple[float, float]
) -> Figure:
    """Draw the transfer matrix of a property beside its learning curves, if there are any.

    Args:
        prop: name of the property.
        analyses: results of the further analyses.
        limits: scores of the first and the last colour, as in the property's other heatmaps.
    """
    metric = metric_title(analyses.transfer.metric)
    figure = Figure(figsize=(8.4, 3.2))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.22})
    matrix = np.array(analyses.transfer.score, dtype=float)
    steps = np.arange(1, len(matrix) + 1)
    image = left.imshow(matrix, cmap=SCORE_COLORMAP, origin="lower", vmin=limits[0], vmax=limits[1])
    ticks = np.arange(0, len(steps), -(-len(steps) // 8))
    left.set_xticks(ticks, [str(steps[i]) for i in ticks])
    left.set_yticks(ticks, [str(steps[i]) for i in ticks])
    left.set_xlabel("step of the activations")
    left.set_ylabel("step of the probe")
    left.set_title(f"{prop}: {metric} of probes at other steps", fontsize=9)
    defined = matrix[np.isfinite(matrix)]
    below, above = (defined < limits[0]).any(), (defined > limits[1]).any()
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    figure.colorbar(image, ax=left, extend=extend.get((bool(below), bool(above)), "neither"))
    if not analyses.learning:
        right.set_axis_off()
        return figure
    for curve, color in zip(analyses.learning, _COLORS[-len(analyses.learning) :], strict=True):
        mean, low, high = (
            np.array([getattr(interval, name) for interval in curve.score], dtype=float)
            for name in ("mean", "low", "high")
        )
        right.plot(curve.images, mean, "o-", color=color, markersize=4, label=f"step {curve.step}")
        right.fill_between(curve.images, low, high, color=color, alpha=0.18, linewidth=0)
    right.set_xscale("log", base=2)
    right.set_xticks(curve.images, [str(n) for n in curve.images])
    right.minorticks_off()
    right.set_xlabel("training images")
    right.set_title(f"{metric} of ridge probes", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    right.grid(alpha=0.25)
    return figure


def generalization_rows(summary: Summary) -> list[dict[str, str]]:
    """Build the table of category hold-out and description length, as text by column heading.

    There is one row for each property and refitted step; none without stored training activations.
    """
    rows = []
    for prop, result in summary.properties.items():
        analyses = result.analyses
        if analyses is None:
            continue
        holdout = {record.step: record for record in analyses.holdout or ()}
        lengths = {record.step: record for record in analyses.code_length or ()}
        for step in sorted(holdout.keys() | lengths.keys()):
            fold, length = holdout.get(step), lengths.get(step)
            ratio = length.compression if length else None
            saved = number(length.saved) if length else "–"
            rows.append(
                {
                    "property": prop,
                    "step": str(step),
                    "unseen categories": number(fold.unseen) if fold else "–",
                    "minus all categories": number(fold.difference) if fold else "–",
                    "minus as many images": number(fold.matched_difference) if fold else "–",
                    "bits saved per token (masks: per pixel)": saved,
                    "compression": "–" if ratio is None else f"{ratio:.2f}",
                }
            )
    return rows
