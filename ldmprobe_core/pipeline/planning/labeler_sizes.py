"""Sizes of a study's labelers in memory, and of the values that they return."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.registry import find_labeler, labelers_of
from ldmprobe_core.study.properties import PROPERTIES
from ldmprobe_core.study.schema import Study

_IN_FLOAT16 = {
    "depth": {"tabletop", "midas", "depth-anything"},
    "shading": {"tabletop", "retinex", "marigold", "intrinsic"},
    "normals": {"tabletop"},
}
"""Built-in labelers, by property or vector, whose values float16 holds.

The labeler ``transformers`` of depth is not among them, since it takes any model.
"""


def labeler_bytes(study: Study) -> int:
    """Return the size of the weight files of a study's labelers in bytes.

    A file that several labelers share is counted once, and missing files are not counted.
    """
    files: set[Path] = set()
    for prop, spec in labelers_of(study).items():
        with suppress(UserError):
            files |= set(find_labeler(prop, spec.name).locate_weights(spec))
    return sum(file.stat().st_size for file in files)


def labeling_bytes(study: Study, images: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the memory of the intermediate values of a study's labelers, which run in turn.

    A labeler whose needs are not known counts nothing.

    Args:
        study: the study.
        images: number of images that a unit of labeling passes to a labeler.
        size: height and width of the images in pixels.

    Returns:
        bytes of the largest labeler, and the largest number of bytes in tensors below 32 MiB.
    """
    peak = small = 0
    for prop, spec in labelers_of(study).items():
        call = find_labeler(prop, spec.name).call_memory(size)
        count = min(images, call.at_once)
        peak, small = max(peak, count * call.peak), max(small, count * call.small)
    return peak, small


def wide_properties(study: Study) -> frozenset[str]:
    """Return the scalar map properties whose labelers may give values that float16 cannot hold."""
    wide = set()
    for prop, spec in labelers_of(study).items():
        if prop not in study.labels.maps or PROPERTIES[prop].is_mask:
            continue
        component = PROPERTIES[prop].component
        known = _IN_FLOAT16.get(component.vector if component else prop, set())
        if spec.name not in known:
            wide.add(prop)
    return frozenset(wide)
