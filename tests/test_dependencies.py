"""Every package that the code imports is declared in pyproject.toml."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
OWN = {"ldmprobe", "ldmprobe_core", "flows", "tasks", "infra"}
OPTIONAL = {"carvekit", "intrinsic"}  # installed by hand (docs/models.md)


def normal(name):
    """A distribution's name as package indexes compare it: letters, digits and single dashes."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path):
    """Top-level names of the packages that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_every_imported_package_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [
        line
        for lines in [project["dependencies"], *project["optional-dependencies"].values()]
        for line in lines
    ]
    # An extra counts as declared by its name: dask[distributed] brings distributed.
    declared = {
        normal(name)
        for line in requirements
        for name in re.findall(r"^[\w.-]+|(?<=[\[,])[\w.-]+(?=[,\]])", line)
    }
    distributions = packages_distributions()
    undeclared = {}
    for package in sorted(OWN):
        for path in (ROOT / package).rglob("*.py"):
            for name in set(imported(path)) - OWN - set(sys.stdlib_module_names) - OPTIONAL:
                if not {normal(d) for d in distributions.get(name, [name])} & declared:
                    undeclared.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert undeclared == {}
