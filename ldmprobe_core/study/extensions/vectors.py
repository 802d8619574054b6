"""Vector properties, such as surface normals, whose components are properties themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from ldmprobe_core.study.readers.value_types import Section


class Component(Section):
    """Place of a property among the components of a vector property, such as a surface normal.

    Attributes:
        vector: name of the vector property.
        index: index of the component in the maps (n, y, x, component) of the vector's labeler.
        size: number of components of the vector.
    """

    vector: str
    index: int = Field(ge=0, le=63)
    size: int = Field(ge=2, le=64)


def vector_components(
    name: str, components: Sequence[str], fields: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the fields of the records of a vector property's components, by component's name.

    Args:
        name: name of the vector property.
        components: names of its components, such as ``("x", "y", "z")``.  The first becomes the
            property ``<name>_x``.
        fields: further fields of `Property` that all components have.  The title is the vector's.

    Raises:
        ValueError: there are no names of two or more components, each once.
    """
    names = components if isinstance(components, list | tuple) else ()
    if (
        len(names) < 2
        or not all(isinstance(one, str) for one in names)
        or len({*names}) < len(names)
    ):
        raise ValueError(
            f"the components of {name} are {components!r:.60}. Fix: list the names of two or more "
            "components, such as [x, y]"
        )
    common = {"kind": "scalar"} | {key: fields[key] for key in fields if key not in _OF_VECTORS}
    title = fields.get("title", name.replace("_", " "))
    return {
        f"{name}_{part}": {
            **common,
            "title": f"{title}, {part}",
            "component": {"vector": name, "index": index, "size": len(names)},
        }
        for index, part in enumerate(names)
    }


_OF_VECTORS = frozenset({"kind", "components"})
"""Keys of a vector's declaration that its components do not have."""
