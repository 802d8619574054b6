"""docs/benchmarks.md: its table against the committed figures, and the benchmarks' imports."""

import importlib
import json
from pathlib import Path

import pytest

from benchmarks.figures import COMMITTED, DOCUMENT, documented

ROOT = Path(__file__).parents[2]


def test_documented_table_equals_committed_figures():
    page = DOCUMENT.read_text()
    assert documented(page, json.loads(COMMITTED.read_text())) == page
    assert len([line for line in page.splitlines() if line.startswith("| ")]) > 20


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_benchmark_can_be_imported(path):
    importlib.import_module(f"benchmarks.{path.stem}")


def test_documented_table_by_hand():
    figures = [
        {"part": "p", "name": "n", "value": 1.234, "unit": "x", "at_most": 1.5},
        {"part": "p", "name": "m", "value": 20.0, "unit": "", "at_least": 30, "note": "why"},
    ]
    content = {
        "command": "make bench", "date": "2026-11-25", "machine": "1 x cpu",
        "versions": {"python": "3", "torch": "2", "numpy": "1", "zarr": "4"}, "figures": figures,
    }  # fmt: skip
    page = documented("a\n<!-- figures -->\nold\n<!-- /figures -->\nb\n", content)
    assert page.splitlines() == [
        "a", "<!-- figures -->",
        "`make bench`, 2026-11-25, 1 x cpu; python 3, torch 2, numpy 1, zarr 4.", "",
        "| | figure | value | goal | depends on |", "| --- | --- | --- | --- | --- |",
        "| p | n | 1.23 x | <= 1.5 met |  |", "| p | m | 20 | >= 30 MISSED | why |",
        "<!-- /figures -->", "b",
    ]  # fmt: skip
