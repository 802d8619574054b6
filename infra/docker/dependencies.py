"""Print the dependencies in pyproject.toml, so that an image can install them separately."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def dependencies(pyproject: str, extras: list[str]) -> list[str]:
    """Return a project's requirements for building and running it with the named extras.

    Args:
        pyproject: text of a pyproject.toml.
        extras: names of extras, none of which may refer to other extras of the project.

    Returns:
        requirements as pip takes them, one each.
    """
    parsed = tomllib.loads(pyproject)
    project = parsed["project"]
    optional = [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [*parsed["build-system"]["requires"], *project["dependencies"], *optional]


if __name__ == "__main__":
    print("\n".join(dependencies(Path("pyproject.toml").read_text(), sys.argv[1:])))
