"""Properties that a user defines in a study, under its key ``properties``.

A declaration is a `Property` record, whose fields have defaults by kind, beside an optional
labeler::

    properties:
      sunlit: {kind: mask, labeler: "mypackage.labels:sunlit"}

The labeler moves to ``labels.sunlit``, unless the study names another one there.  A declaration of
the kind ``vector``, with ``components``, becomes the declarations of its components, and a labeler
of the vector becomes the labeler of each of them::

    properties:
      flow: {kind: vector, components: [x, y], labeler: "mypackage.labels:flow"}

A property that
was registered in Python is added to the declarations of each study that labels it.  Every stored
study therefore describes its properties, and its run can be read without the user's modules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from ldmprobe_core.study.extensions.components import component_records
from ldmprobe_core.study.extensions.entry_points import PROPERTY_POINTS, load_entry_points
from ldmprobe_core.study.probe_sections import Labels
from ldmprobe_core.study.properties import (
    METRICS_OF_KIND,
    PROPERTIES,
    REGISTERED_METRICS,
    Property,
    is_built_in,
    register_properties,
)

_OTHER_KEYS = frozenset((f.alias or name) for name, f in Labels.model_fields.items())
"""Keys of ``labels`` that are not names of further properties."""


def declare(content: dict[str, Any]) -> dict[str, Any]:
    """Move the labelers of declared properties to ``labels``, and add missing property records.

    Args:
        content: values of the study by key, unchecked; it is not changed.

    Returns:
        the content, with labelers under ``labels`` only, and with the record of each registered
        property that the study labels.
    """
    labels, declared = content.get("labels", {}), content.get("properties") or {}
    if not isinstance(declared, dict) or not isinstance(labels, dict | Labels):
        return content
    if isinstance(labels, Labels):
        labels = labels.model_dump(by_alias=True)
    declared = _with_components(declared)
    labelers = {
        name: record["labeler"]
        for name, record in declared.items()
        if isinstance(record, dict) and "labeler" in record
    }
    records = {name: _without_labeler(record) for name, record in declared.items()}
    for name, record in records.items():
        metrics = record.get("metrics") if isinstance(record, dict) else None
        if isinstance(metrics, list | tuple) and not _all_known(metrics):
            # The record in the study names metrics that are not registered in this process.
            # Importing the module of the property registers them.
            load_entry_points(PROPERTY_POINTS, name, f"properties.{name}")
    for name in labels:
        if isinstance(name, str) and name not in {*PROPERTIES, *records, *_OTHER_KEYS}:
            # An installed package may offer this property.  Importing the package registers the
            # property in `PROPERTIES`, where the code below looks it up.
            load_entry_points(PROPERTY_POINTS, name, f"labels.{name}")
    labels = _labels_of_components({**labelers, **labels}, records)
    for name in labels:
        if name in PROPERTIES and not is_built_in(name) and name not in records:
            records[name] = PROPERTIES[name]
    changed = {"labels": labels} if labels else {}
    return {**content, **changed, "properties": records}


def _with_components(declared: dict[str, Any]) -> dict[str, Any]:
    """Replace the declaration of each vector property by one declaration for each component.

    Raises:
        ValueError: a component has the name of another declaration, or of another component.
    """
    expanded: dict[str, Any] = {}
    for name, record in declared.items():
        kind = record.get("kind") if isinstance(record, dict) else None
        parts = component_records(name, kind, record) if isinstance(kind, str) else None
        for part in parts or ():
            if part in declared or part in expanded:
                raise ValueError(
                    f"property {part!r}: the name is also that of a component of {name}. Fix: "
                    "rename the property or the component"
                )
        expanded |= {name: record} if parts is None else parts
    return expanded


def _labels_of_components(labels: dict[str, Any], records: dict[str, Any]) -> dict[str, Any]:
    """Give each component of a vector property the vector's labeler, unless it has its own."""
    places: dict[str, list[tuple[int, str]]] = {}
    known = {**records, **{name: one.model_dump() for name, one in PROPERTIES.items()}}
    for name, record in known.items():
        place = record.get("component") if isinstance(record, dict) else None
        if isinstance(place, dict) and "index" in place:
            places.setdefault(str(place.get("vector")), []).append((place["index"], name))
    expanded: dict[str, Any] = {}
    for name, labeler in labels.items():
        parts = [part for _, part in sorted(places.get(name, ()))]
        for one in parts or [name]:
            if one == name or one not in labels:
                expanded[one] = labeler
    return expanded


def _all_known(metrics: Iterable[Any]) -> bool:
    known = {*REGISTERED_METRICS, *(name for names in METRICS_OF_KIND.values() for name in names)}
    return all(metric in known for metric in metrics if isinstance(metric, str))


def _without_labeler(record: Any) -> Any:
    """Return a declared record without its key ``labeler``, which is not a field of `Property`."""
    if not isinstance(record, dict):
        return record
    return {key: value for key, value in record.items() if key != "labeler"}


def _named(content: Any) -> Any:
    """Set a missing field ``name`` of each property's record to the key of the record."""
    if not isinstance(content, dict):
        return content
    return {
        name: {"name": name, **record} if isinstance(record, dict) else record
        for name, record in content.items()
    }


def _registered(records: dict[str, Property]) -> dict[str, Property]:
    """Register the declared properties in this process, and return them."""
    for name, record in records.items():
        if record.name != name:
            raise ValueError(
                f"{name}.name is {record.name!r}, which is not the key {name}. "
                "Fix: leave its name out"
            )
    register_properties(records.values())
    return records


Declarations = Annotated[dict[str, Property], BeforeValidator(_named), AfterValidator(_registered)]
"""Type of the key ``properties``: records by name, which are registered in this process."""
