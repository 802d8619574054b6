"""Properties that a study declares itself, under its key ``properties``.

A declaration is a `Property` record, whose fields have defaults by kind, beside an optional
labeler::

    properties:
      sunlit: {kind: mask, labeler: "mypackage.labels:sunlit"}

The labeler moves to ``labels.sunlit``, unless the study names another one there.  A property that
was registered in Python is added to the declarations of each study that labels it.  Every stored
study therefore describes its properties, and its run can be read without the user's modules.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from ldmprobe_core.study.extensions.entry_points import PROPERTY_POINTS, load_entry_points
from ldmprobe_core.study.probe_sections import Labels
from ldmprobe_core.study.properties import (
    PROPERTIES,
    Property,
    is_built_in,
    register_property,
)

_OTHER_KEYS = frozenset((f.alias or name) for name, f in Labels.model_fields.items())
"""Keys of ``labels`` that are not names of further properties."""


def declare(content: dict[str, Any]) -> dict[str, Any]:
    """Complete a study's content: labelers go under ``labels``, labeled properties get a record.

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
    labelers = {
        name: record["labeler"]
        for name, record in declared.items()
        if isinstance(record, dict) and "labeler" in record
    }
    records = {name: _without_labeler(record) for name, record in declared.items()}
    for name in labels:
        if isinstance(name, str) and name not in {*PROPERTIES, *records, *_OTHER_KEYS}:
            # Importing the module registers the property, which is looked up below.
            load_entry_points(PROPERTY_POINTS, name, f"labels.{name}")
        if name in PROPERTIES and not is_built_in(name) and name not in records:
            records[name] = PROPERTIES[name]
    changed = {"labels": {**labelers, **labels}} if labelers else {}
    return {**content, **changed, "properties": records}


def _without_labeler(record: Any) -> Any:
    """Return a declared record without its key ``labeler``, which is not a field of `Property`."""
    if not isinstance(record, dict):
        return record
    return {key: value for key, value in record.items() if key != "labeler"}


def _named(content: Any) -> Any:
    """Give each record the name under which it is declared."""
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
            raise ValueError(f"{name} has the name {record.name!r}. Fix: leave name out")
        register_property(record)
    return records


Declarations = Annotated[dict[str, Property], BeforeValidator(_named), AfterValidator(_registered)]
"""Type of the key ``properties``: records by name, which are registered in this process."""
