"""What benchmarks share: a figure with its unit and goal, tables of them, and the studied job."""

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

from ldmprobe_core.pipeline.prepare import versions
from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.schema import Study

COMMITTED = Path(__file__).parent / "figures.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- figures -->", "<!-- /figures -->"


@dataclass(frozen=True)
class Figure:
    """One number that a benchmark found.

    Attributes:
        part: the benchmark.
        name: what was measured.
        value: ratios are taken within one run, so that a machine's speed leaves them alone.
        unit: ``x`` for a ratio.
        at_most, at_least: the goal, if there is one.
        note: what it depends on.
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
        """The goal in words, and whether it is met."""
        if self.at_most is not None:
            return f"<= {self.at_most:g} {'met' if self.value <= self.at_most else 'MISSED'}"
        if self.at_least is not None:
            return f">= {self.at_least:g} {'met' if self.value >= self.at_least else 'MISSED'}"
        return ""


def report(figures: Iterable[Figure], before: dict[str, float] | None = None) -> None:
    """Print figures as one table; ``before`` are those last committed, by `key`."""
    table = Table()
    for column in ("accumulator", "figure", "value", "before", "goal", "note"):
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
    """What a figure is known by from run to run."""
    return f"{figure.part}: {figure.name}"


def committed() -> list[Figure]:
    """The figures of the last committed run."""
    if not COMMITTED.exists():
        return []
    return [Figure(**figure) for figure in json.loads(COMMITTED.read_text())["figures"]]


def documented(page: str, content: dict[str, Any]) -> str:
    """A page with its table of figures made anew from the JSON of a run.

    Args:
        page: Markdown with the lines ``<!-- figures -->`` and ``<!-- /figures -->``.
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
    """Figures with machine and versions."""
    content = {
        "machine": machine(),
        "versions": versions(),
        **more,
        "figures": [asdict(figure) for figure in figures],
    }
    return json.dumps(content, indent=2) + "\n"


def machine() -> str:
    """Processor, and how many of it."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = f"{len(lines)} x {lines[0].partition(': ')[2]}" if lines else name
    return name


def plain_study(images: int, steps: int, **changes: str) -> Study:
    """The embedded study with so many images and steps, on two threads, a batch at a time.

    Args:
        changes: by dotted key, as in YAML.
    """
    sizes = {"prompts.samples": images, "sampling.steps": steps, "sampling.threads": 2}
    overrides = {**sizes, **changes}
    return load_study("tabletop", [f"{name}={value}" for name, value in overrides.items()])


def without_controls(study: Study) -> Study:
    """The same with nothing but the probes proper."""
    content = study.model_dump(mode="json", by_alias=True)
    controls = content["controls"]
    content["controls"] = {k: v if type(v) is int else False for k, v in controls.items()}
    return parse_study(content)


def exponent(sizes: list[float], values: list[float]) -> float:
    """Slope of a least-squares line through logarithms: value ~ size ** exponent."""
    x = [math.log(size) for size in sizes]
    y = [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
