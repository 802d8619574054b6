"""docs/architecture.svg is what its script draws, and is well-formed."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def test_architecture_figure_is_up_to_date():
    path = ROOT / "docs/draw_architecture.py"
    spec = importlib.util.spec_from_file_location("draw_architecture", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.FIGURE.read_text() == script.draw()
    ElementTree.fromstring(script.draw())  # our own file
    packages = {box[0] for floor in script.CORE for box in floor}
    folders = {p.parent.name for p in (ROOT / "ldmprobe_core").glob("*/__init__.py")}
    assert packages == folders | {"errors"}


def test_every_folder_inside_the_packages_is_documented():
    """Folders of the core are named without ``ldmprobe_core/``, those of others with all of it."""
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition("Folders inside the packages")[2].partition("\n## ")[0]
    folders = {
        path.parent.relative_to(ROOT).as_posix().removeprefix("ldmprobe_core/")
        for package in ("ldmprobe_core", "ldmprobe", "flows", "tasks", "infra")
        for path in (ROOT / package).glob("*/**/*.py")
    }
    inside = {folder for folder in folders if "/" in folder}
    assert len(inside) > 20
    assert {folder for folder in inside if f"| `{folder}/` |" not in table} == set()


def test_every_cache_is_documented():
    """Each module with a cache decorator stands in the page's table of caches."""
    page = (ROOT / "docs/architecture.md").read_text()
    section = page[page.index("## What a process remembers") :]
    core = ROOT / "ldmprobe_core"
    decorators = re.compile(r"^ *@(lru_cache|cache|cached_property)\b", re.MULTILINE)
    cached = [
        str(path.relative_to(core))
        for path in core.rglob("*.py")
        if decorators.search(path.read_text())
    ]
    assert len(cached) >= 8
    assert [path for path in cached if path not in section] == []
