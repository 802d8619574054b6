"""Shared parts of the benchmarks: figures with unit and goal, their tables, and small studies."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ldmprobe_core.pipeline.environments import versions
from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.schema import Study

COMMITTED = Path(__file__).parent / "figures.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- figures -->", "<!-- /figures -->"


@dataclass(frozen=True)
class Figure:
    """One number that a benchmark measured.

    Attributes:
        part: name of the benchmark.
        name: quantity that was measured.
        value: value of the quantity; both sides of a ratio are measured in one run, so that the
            ratio does not depend on the machine's speed.
        unit: unit of the value; ``x`` for a ratio.
        at_most, at_least: upper or lower limit that is the goal, if there is one.
        note: conditions on which the value depends.
    """

    part: str
    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def goal(self) -> str:
        """Goal of the figure in words, and whether it is met; empty without a goal."""
        if self.at_most is not None:
            return f"<= {self.at_most:g} {'met' if self.value <= self.at_most else 'MISSED'}"
        if self.at_least is not None:
            return f">= {self.at_least:g} {'met' if self.value >= self.at_least else 'MISSED'}"
        return ""


def report(figures: Iterable[Figure], before: dict[str, float] | None = None) -> None:
    """Print figures as a table, beside the values ``before`` that were last committed, by `key`."""
    table = Table()
    for column in ("benchmark", "figure", "value", "before", "goal", "note"):
        table.add_column(column, overflow="fold")
    for figure in figures:
        old = (before or {}).get(key(figure))
        table.add_row(
            figure.part,
            figure.name,
            f"{_number(figure.value)} {figure.unit}".strip(),
            "" if old is None else _number(old),
            figure.goal,
            figure.note,
        )
    Console(width=170).print(table)


def key(figure: Figure) -> str:
    """Return the text that identifies a figure in all runs of the benchmarks."""
    return f"{figure.part}: {figure.name}"


def committed() -> list[Figure]:
    """Read the figures that were last committed, from `figures.json`."""
    if not COMMITTED.exists():
        return []
    return [Figure(**figure) for figure in json.loads(COMMITTED.read_text())["figures"]]


def documented(page: str, content: dict[str, Any]) -> str:
    """Replace the table of figures in a documentation page by those of a run.

    Args:
        page: Markdown with the lines ``<!-- figures -->`` and ``<!-- /figures -->``.
        content: parsed JSON of a run, as `as_json` writes it.
    """
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    shown = ", ".join(
        f"{name} {content['versions'][name]}" for name in ("python", "torch", "numpy", "zarr")
    )
    lines = [
        f"`{content['command']}`, {content['date']}, {content['machine']}; {shown}.",
        "",
        "| | figure | value | goal | depends on |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in content["figures"]:
        figure = Figure(**one)
        value = f"{_number(figure.value)} {figure.unit}".strip()
        lines.append(f"| {figure.part} | {figure.name} | {value} | {figure.goal} | {figure.note} |")
    return f"{before}{_BEGIN}\n{chr(10).join(lines)}\n{_END}{after}"


def as_json(figures: Iterable[Figure], **more: Any) -> str:
    """Convert figures to JSON, with the machine, the versions of packages, and further keys."""
    content = {
        "machine": machine(),
        "versions": versions(),
        **more,
        "figures": [asdict(figure) for figure in figures],
    }
    return json.dumps(content, indent=2) + "\n"


def machine() -> str:
    """Return the number and the name of this machine's processors."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = f"{len(lines)} x {lines[0].partition(': ')[2]}" if lines else name
    return name


def plain_study(images: int, steps: int, **changes: str) -> Study:
    """Build the default study with other numbers of images and steps, on two CPU threads.

    Args:
        images: number of samples.
        steps: number of sampler steps.
        changes: values of further keys of the study, by dotted key.
    """
    sizes = {"prompts.samples": images, "sampling.steps": steps, "sampling.threads": 2}
    overrides = {**sizes, **changes}
    return load_study("tabletop", [f"{name}={value}" for name, value in overrides.items()])


def without_controls(study: Study) -> Study:
    """Return a study with all controls switched off."""
    content = study.model_dump(mode="json", by_alias=True)
    controls = content["controls"]
    content["controls"] = {k: v if type(v) is int else False for k, v in controls.items()}
    return parse_study(content)


def exponent(sizes: list[float], values: list[float]) -> float:
    """Fit the exponent of a power law, value ~ size ** exponent, by least squares of logarithms."""
    x = [math.log(size) for size in sizes]
    y = [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def _number(value: float) -> str:
    """Format a value with three significant digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
