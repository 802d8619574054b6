"""Labelers: what reads a property off an image.

A `Labeler` takes uint8 images and gives one map an image, or class scores.  Labelers are known by
name; `load_labeler` finds them.  To add one, write a class with this protocol and a `Kind` that
checks and loads it, and enter the kind in `_KINDS`.
"""

from __future__ import annotations

import hashlib

import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers import classes, depth, foreground, shading, tabletop
from ldmprobe_core.labelers.base import Kind, Labeler
from ldmprobe_core.study.properties import MAP_PROPERTIES
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Reader

MAPS = "maps"
"""Not a labeler: the exact maps that lie beside pictures of one's own."""


_KINDS: dict[str, dict[str, Kind]] = {
    "foreground": {
        "tabletop": Kind(tabletop.find, tabletop.load_foreground),
        "tracer": Kind(foreground.find_tracer, foreground.load_tracer),
        "inspyrenet": Kind(foreground.find_inspyrenet, foreground.load_inspyrenet),
    },
    "depth": {
        "tabletop": Kind(tabletop.find, tabletop.load_depth),
        "midas": Kind(depth.find_midas, depth.load_midas),
        "depth-anything": Kind(depth.find, depth.load),
        "transformers": Kind(depth.find, depth.load),
    },
    "shading": {
        "tabletop": Kind(tabletop.find, tabletop.load_shading),
        "retinex": Kind(shading.find_retinex, shading.load_retinex),
        "marigold": Kind(shading.find_marigold, shading.load_marigold),
        "intrinsic": Kind(shading.find_intrinsic, shading.load_intrinsic),
    },
    "class": {
        "tabletop": Kind(tabletop.find, tabletop.load_classes),
        "vgg16": Kind(classes.find_vgg16, classes.load_vgg16),
        "transformers": Kind(classes.find, classes.load),
    },
}


def load_labeler(prop: str, reader: Reader, device: torch.device) -> Labeler:
    """The labeler of this name for this property.

    Raises:
        UserError: there is no such labeler, or its package or weights are missing.
    """
    require_known(prop, reader)
    return _KINDS[prop][reader.name].load(reader, device)


def require_known(prop: str, reader: Reader) -> None:
    """Raise `UserError` where the property has no labeler of this name."""
    if reader.name not in _KINDS[prop]:
        known = ", ".join(sorted(_KINDS[prop]))
        raise UserError(f"labels.{prop} is {reader.name!r}: no such labeler; there is {known}")


def check_labeler(prop: str, reader: Reader) -> str:
    """Check that a labeler can be loaded here, without loading it.

    Returns:
        16 hex digits of its weights' files.

    Raises:
        UserError: its package or weights are missing.
    """
    try:
        files = _KINDS[prop][reader.name].find(reader)
    except UserError as error:
        raise UserError(f"labels.{prop} is {reader.name!r}: {error}") from error
    digest = hashlib.sha256(reader.name.encode())
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def labelers_of(study: Study) -> dict[str, Reader]:
    """Property to labeler, for every property that a labeler reads."""
    named = {prop: getattr(study.labels, prop) for prop in MAP_PROPERTIES}
    named["class"] = study.labels.classes
    return {prop: r for prop, r in named.items() if r is not None and r.name != MAPS}
