"""Labelers: what reads a property off an image.

A `Labeler` takes uint8 images and gives one map an image, or class scores.  Labelers are known by
name; `load_labeler` finds them.  To add one, write a class with this protocol and a `LabelerEntry`
that checks and loads it, and enter the kind in `_LABELERS`.
"""

from __future__ import annotations

import hashlib

import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers import classes, depth, foreground, shading, tabletop
from ldmprobe_core.labelers.base import Labeler, LabelerEntry
from ldmprobe_core.study.properties import map_properties
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import LabelerSpec

EXACT_MAPS = "maps"
"""Not a labeler: the exact maps that lie beside pictures of one's own."""


_LABELERS: dict[str, dict[str, LabelerEntry]] = {
    "foreground": {
        "tabletop": LabelerEntry(tabletop.locate_weights, tabletop.load_foreground),
        "tracer": LabelerEntry(foreground.locate_tracer, foreground.load_tracer),
        "inspyrenet": LabelerEntry(foreground.locate_inspyrenet, foreground.load_inspyrenet),
    },
    "depth": {
        "tabletop": LabelerEntry(tabletop.locate_weights, tabletop.load_depth),
        "midas": LabelerEntry(depth.locate_midas, depth.load_midas),
        "depth-anything": LabelerEntry(
            depth.locate_transformers_depth, depth.load_transformers_depth
        ),
        "transformers": LabelerEntry(
            depth.locate_transformers_depth, depth.load_transformers_depth
        ),
    },
    "shading": {
        "tabletop": LabelerEntry(tabletop.locate_weights, tabletop.load_shading),
        "retinex": LabelerEntry(shading.locate_retinex, shading.load_retinex),
        "marigold": LabelerEntry(shading.locate_marigold, shading.load_marigold),
        "intrinsic": LabelerEntry(shading.locate_intrinsic, shading.load_intrinsic),
    },
    "class": {
        "tabletop": LabelerEntry(tabletop.locate_weights, tabletop.load_classes),
        "vgg16": LabelerEntry(classes.locate_vgg16, classes.load_vgg16),
        "transformers": LabelerEntry(
            classes.locate_transformers_classes, classes.load_transformers_classes
        ),
    },
}


def register_labeler(property_name: str, name: str, entry: LabelerEntry) -> None:
    """Add a labeler of a property; studies may then name it under ``labels``.

    Raises:
        ValueError: the property has a labeler of this name.
    """
    entries = _LABELERS.setdefault(property_name, {})
    if name in entries:
        raise ValueError(f"labeler {name!r} of {property_name}: the name is taken. Fix: another.")
    entries[name] = entry


def load_labeler(prop: str, spec: LabelerSpec, device: torch.device) -> Labeler:
    """The labeler of this name for this property.

    Raises:
        UserError: there is no such labeler, or its package or weights are missing.
    """
    require_known(prop, spec)
    return _LABELERS[prop][spec.name].load(spec, device)


def require_known(prop: str, spec: LabelerSpec) -> None:
    """Raise `UserError` where the property has no labeler of this name."""
    if spec.name not in _LABELERS.get(prop, {}):
        known = ", ".join(sorted(_LABELERS.get(prop, {}))) or "none"
        raise UserError(f"labels.{prop} is {spec.name!r}: no such labeler; there is {known}")


def check_labeler(prop: str, spec: LabelerSpec) -> str:
    """Check that a labeler can be loaded here, without loading it.

    Returns:
        16 hex digits of its weights' files.

    Raises:
        UserError: its package or weights are missing.
    """
    try:
        files = _LABELERS[prop][spec.name].locate_weights(spec)
    except UserError as error:
        raise UserError(f"labels.{prop} is {spec.name!r}: {error}") from error
    digest = hashlib.sha256(spec.name.encode())
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def labelers_of(study: Study) -> dict[str, LabelerSpec]:
    """Property to labeler, for every property that a labeler reads."""
    named = {prop: study.labels.labeler(prop) for prop in map_properties()}
    named["class"] = study.labels.classes
    return {prop: r for prop, r in named.items() if r is not None and r.name != EXACT_MAPS}
