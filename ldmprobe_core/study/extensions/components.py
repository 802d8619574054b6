"""Joint properties (vectors and class maps), whose components are properties themselves.

The components of a *vector*, such as the surface normal, are scalar maps, and those of a *class
map* (a semantic segmentation) are the masks of its classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from ldmprobe_core.study.readers.value_types import Section

COMPONENT_KEYS = {"vector": "components", "classes": "classes"}
"""Key of a declaration that lists the names of the components, by kind of joint property."""

_KIND_OF_COMPONENTS = {"vector": "scalar", "classes": "mask"}


class Component(Section):
    """Position of a property in the vector or class map of which it is a component.

    Attributes:
        vector: name of the vector or of the class map.
        index: index of the component in the maps (n, y, x, component) of a vector's labeler, or
            value of the class in the maps (n, y, x) of a class map's labeler.
        size: number of components.
        joint: kind of the joint property.
    """

    vector: str
    index: int = Field(ge=0, le=63)
    size: int = Field(ge=2, le=64)
    joint: Literal["vector", "classes"] = Field(
        "vector", exclude_if=lambda value: value == "vector"
    )


def component_records(
    name: str, kind: str, fields: dict[str, Any]
) -> dict[str, dict[str, Any]] | None:
    """Return the fields of a `Property` for each component of a vector or class map, by name.

    Args:
        name: name of the joint property.
        kind: ``vector`` or ``classes``.  Other kinds are of properties without components.
        fields: fields of the declaration.  ``components`` of a vector, or ``classes`` of a class
            map, are the components' names, such as ``["x", "y", "z"]``; the first becomes the
            property ``<name>_x``.  All components have the other fields; the title is that of the
            joint property.

    Returns:
        None if the kind has no components.

    Raises:
        ValueError: there are no names of two or more components, each once.
    """
    if kind not in COMPONENT_KEYS:
        return None
    key = COMPONENT_KEYS[kind]
    names = _component_names(name, key, fields.get(key, ()))
    common = {"kind": _KIND_OF_COMPONENTS[kind]}
    common |= {field: fields[field] for field in fields if field not in ("kind", key)}
    title = fields.get("title", name.replace("_", " "))
    return {
        f"{name}_{part}": {
            **common,
            "title": f"{title}, {part}",
            "component": {"vector": name, "index": index, "size": len(names), "joint": kind},
        }
        for index, part in enumerate(names)
    }


def _component_names(name: str, key: str, names: Any) -> Sequence[str]:
    """Check that a vector or class map lists two or more distinct components, and return them.

    Raises:
        ValueError: it is no list of two or more distinct names.
    """
    listed = names if isinstance(names, list | tuple) else ()
    distinct = {one for one in listed if isinstance(one, str)}
    if len(listed) < 2 or len(distinct) < len(listed):
        raise ValueError(
            f"the {key} of {name} are {names!r:.60}. Fix: list the names of two or more {key}, "
            "such as [x, y]"
        )
    return listed
