"""docs/architecture.svg is what its script draws, and is well-formed."""

import importlib.util
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
