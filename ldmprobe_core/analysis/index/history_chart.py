"""Charts of a scheduled study's scores over the dates of its runs, as SVG."""

from __future__ import annotations

from html import escape

from ldmprobe_core.analysis.controls.wording import metric_title
from ldmprobe_core.analysis.index.history import HeadlineScore, HistoryEntry, differences
from ldmprobe_core.analysis.report.style import PROBE_COLOR
from ldmprobe_core.analysis.report.text import number
from ldmprobe_core.errors import counted, verb

_WIDTH, _HEIGHT, _MARGIN, _LEFT = 460, 150, 14, 44
"""Size of a chart, width of the margins, and of the left one with the labels of the axis."""

Point = tuple[HistoryEntry, HeadlineScore]


def history_charts(entries: list[HistoryEntry]) -> dict[str, str]:
    """Draw the headline score of every property over the dates of its runs.

    A point is one run, with its interval as a line.  Points of runs that differ from the newest one
    in more than their seeds are hollow.  Points are not joined, and runs whose score is in another
    metric than the newest run's are left out.

    Args:
        entries: history of one study, oldest date first.

    Returns:
        SVG of each property by a caption with the property, the metric and what is left out.
    """
    charts = {}
    for prop in dict.fromkeys(prop for entry in reversed(entries) for prop in entry.scores):
        scored = [(entry, entry.scores[prop]) for entry in entries if prop in entry.scores]
        metric = scored[-1][1].metric
        points = [point for point in scored if point[1].metric == metric]
        drawn = [point for point in points if point[1].score.mean is not None]
        caption = f"{prop}: {metric_title(metric)}"
        if without := len(entries) - len(drawn):
            have = verb(without, "has", "have")
            caption += f" ({without} of {len(entries)} runs {have} no such score)"
        if drawn:
            charts[caption] = _chart(drawn, entries[-1], caption)
    return charts


def _chart(points: list[Point], newest: HistoryEntry, caption: str) -> str:
    """Draw the points of one property; every one has a mean."""
    values = [
        value
        for _, result in points
        for value in (result.score.low, result.score.mean, result.score.high)
        if value is not None
    ]
    low, high = min(values), max(values)
    first, last = points[0][0].scheduled_for, points[-1][0].scheduled_for
    days = (last - first).days

    def across(entry: HistoryEntry) -> float:
        share = (entry.scheduled_for - first).days / days if days else 0.5
        return _LEFT + _MARGIN + share * (_WIDTH - _LEFT - 2 * _MARGIN)

    def down(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return _HEIGHT - 2 * _MARGIN - share * (_HEIGHT - 3 * _MARGIN)

    marks = []
    for entry, result in points:
        x, mean = across(entry), down(result.score.mean or 0.0)
        other = differences(entry, newest)
        title = f"{entry.scheduled_for}, {entry.run}: {number(result.score)}"
        title += f"; differs in {', '.join(other)}" if other else ""
        line = ""
        if result.score.low is not None and result.score.high is not None:
            line = (
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{down(result.score.low):.1f}" '
                f'y2="{down(result.score.high):.1f}"/>'
            )
        fill = "none" if other else PROBE_COLOR
        marks.append(
            f'<g stroke="{PROBE_COLOR}" stroke-width="1.5">{line}<circle cx="{x:.1f}" '
            f'cy="{mean:.1f}" r="3.5" fill="{fill}"><title>{escape(title)}</title></circle></g>'
        )
    texts = [
        (4, down(high) + 4, f"{high:.2f}"),
        (4, down(low) + 4, f"{low:.2f}"),
        (_LEFT, _HEIGHT - 2, first.isoformat()),
        (_WIDTH - 70, _HEIGHT - 2, last.isoformat() if days else ""),
    ]
    labels = "".join(
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" font-family="sans-serif" fill="#808080">'
        f"{text}</text>"
        for x, y, text in texts
    )
    alternative = escape(
        f"{caption}, {counted(len(points), 'run')} from {first} to {last}", quote=True
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{alternative}">'
        f"{labels}{''.join(marks)}</svg>"
    )
