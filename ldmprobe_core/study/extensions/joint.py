"""Lookup of the registered components of vectors and class maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ldmprobe_core.study.properties import PROPERTIES


def components_of(vector: str) -> tuple[str, ...]:
    """Return the names of a vector's components, in order; empty if there is no such vector.

    Args:
        vector: name of a vector property, such as ``normals``.
    """
    found = {
        record.component.index: name
        for name, record in PROPERTIES.items()
        if record.component is not None and record.component.vector == vector
    }
    return tuple(found[index] for index in sorted(found))


def joint_properties(
    props: Iterable[str], joint: Literal["vector", "classes"]
) -> dict[str, tuple[str, ...]]:
    """Group components by vector or class map; incomplete vectors and class maps are left out.

    Args:
        props: names of properties.
        joint: ``vector`` for vectors, ``classes`` for class maps.
    """
    present = set(props)
    names = dict.fromkeys(
        record.component.vector
        for record in PROPERTIES.values()
        if record.component is not None and record.component.joint == joint
    )
    return {name: parts for name in names if present.issuperset(parts := components_of(name))}
