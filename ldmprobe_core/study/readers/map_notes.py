"""Notes on the ground-truth maps of a folder, by facts that are known of each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.errors import counted, verb
from ldmprobe_core.study.properties import property_of

_MAX_NAMED = 5
"""Largest number of files that one message lists."""
_MARKS = (0.0, 65535.0)
"""Numbers that programs write for pixels without a measured value."""
_LEAST_MARK = 1e10
"""Smallest number that is hardly a value; Blender writes 1e10 as the depth of the background."""
_MARKED_SHARE = 0.05
"""Smallest share of pixels with one number at which the number is reported."""

_ODD_SCALE = 100
"""Smallest ratio of a map's median to the median of all maps at which a warning is given."""


@dataclass(frozen=True)
class MapFacts:
    """Facts about one ground-truth map, resized to the model's image size.

    Attributes:
        missing: share of pixels that were not measured.
        encoding, level: those of `LoadedMap`.
        constant: whether all measured pixels have one value.
        median: median of the absolute values of measured pixels.
        mark: value that may stand for pixels that were not measured, see `mark_of`; None if there
            is none.
        digest: hash of the values.
        is_small: whether the file has fewer rows or columns than the model's images.
    """

    missing: float
    encoding: str
    level: float | None
    constant: bool
    median: float
    mark: float | None
    digest: bytes
    is_small: bool


def mark_of(prop: str, values: np.ndarray) -> float | None:
    """Return the smallest or largest value of a map if it may stand for pixels not measured.

    It fills more than `_MARKED_SHARE` of the pixels exactly.  It is a usual mark, the only negative
    value, or farther from the other values than these are from each other.

    Args:
        prop: name of the property, whose `MapFormat.minimum`, as 0 of shading, is no mark.
        values: values of the map, as it is stored; NaN for pixels that were not measured.
    """
    record = property_of(prop)
    measured = values[~np.isnan(values)]
    if record.is_mask or not measured.size:
        return None
    for extreme in (float(measured.min()), float(measured.max())):
        others = measured[measured != extreme]
        if extreme == record.map_format.minimum or not others.size:
            continue
        if measured.size - others.size <= _MARKED_SHARE * values.size:
            continue
        extent = float(np.ptp(others))
        is_far = 0 < extent < float(np.abs(others - extreme).min())
        is_usual = extreme in _MARKS or extreme < 0 <= float(others.min())
        if is_usual or is_far or extreme >= _LEAST_MARK:
            return extreme
    return None


def comparison_notes(prop: str, facts: dict[str, MapFacts]) -> list[str]:
    """Return notes on duplicate maps, on enlarged maps, and on maps whose scale is unusual."""
    notes = []
    varied = {name: one for name, one in facts.items() if not one.constant}
    first: dict[bytes, str] = {}
    equal = [name for name, one in varied.items() if first.setdefault(one.digest, name) != name]
    if equal:
        of = first[varied[equal[0]].digest]
        notes.append(
            f"images: {counted(len(equal), f'{prop} map')} {verb(len(equal), 'equals', 'equal')} "
            f"another one, such as {of} and {equal[0]}"
        )
    small = [name for name, one in facts.items() if one.is_small]
    if small:
        notes.append(
            f"images: {len(small)} of {len(facts)} {prop} maps {verb(len(small))} smaller than the "
            f"model's images and {verb(len(small))} enlarged: {listed(small)}"
        )
    usual = float(np.median([one.median for one in facts.values()]))
    odd = [
        name
        for name, one in varied.items()
        if usual and not usual / _ODD_SCALE < one.median < usual * _ODD_SCALE
    ]
    if odd and not property_of(prop).is_mask:
        notes.append(
            f"images: the values of {len(odd)} of {len(facts)} {prop} maps are of another scale "
            f"than those of the others (median {facts[odd[0]].median:.3g}, usually {usual:.3g}), "
            f"as if their units differed: {listed(odd)}"
        )
    return notes


def map_notes(prop: str, facts: dict[str, MapFacts], missing: float, stated: bool) -> list[str]:
    """Return notes on maps with unmeasured pixels and on constant maps."""
    notes = []
    if missing:
        notes.append(
            f"images: {missing:.1%} of the pixels of the {prop} maps are not measured, and are "
            "left out of fits and scores"
        )
    elif stated:
        notes.append(f"images.missing has {prop}, but all pixels of its maps are measured")
    marked = {name: one.mark for name, one in facts.items() if one.mark is not None}
    if marked:
        value = next(iter(marked.values()))
        notes.append(
            f"images: {len(marked)} of {len(facts)} {prop} maps "
            f"{verb(len(marked), 'has', 'have')} one value in many pixels, "
            f"{value:g} in the first, that may stand for pixels which were not measured; if it "
            f"does, give images.missing.{prop}: {listed(marked)}"
        )
    constant = [name for name, one in facts.items() if one.constant]
    if constant:
        scalar = ", so that correlations with them are undefined"
        notes.append(
            f"images: {len(constant)} of {len(facts)} {prop} maps "
            f"{verb(len(constant), 'has', 'have')} one value throughout"
            f"{'' if property_of(prop).is_mask else scalar}: {listed(constant)}"
        )
    return notes


def listed(names: Iterable[str]) -> str:
    """Join the first names for a message, and state how many more there are."""
    names = list(names)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
