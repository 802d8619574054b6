"""Notes on the ground-truth maps of a folder, by facts that are known of each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.study.properties import property_of

_MAX_NAMED = 5
"""Largest number of files that one message lists."""
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
        digest: hash of the values.
        is_small: whether the file has fewer rows or columns than the model's images.
    """

    missing: float
    encoding: str
    level: float | None
    constant: bool
    median: float
    digest: bytes
    is_small: bool


def comparison_notes(prop: str, facts: dict[str, MapFacts]) -> list[str]:
    """Return notes on duplicate maps, on enlarged maps, and on maps whose scale is unusual."""
    notes = []
    varied = {name: one for name, one in facts.items() if not one.constant}
    first: dict[bytes, str] = {}
    equal = [name for name, one in varied.items() if first.setdefault(one.digest, name) != name]
    if equal:
        of = first[varied[equal[0]].digest]
        notes.append(
            f"images: {len(equal)} {prop} maps equal another one, such as {of} and {equal[0]}"
        )
    small = [name for name, one in facts.items() if one.is_small]
    if small:
        notes.append(
            f"images: {len(small)} of {len(facts)} {prop} maps are smaller than the model's "
            f"images and are enlarged: {listed(small)}"
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
    constant = [name for name, one in facts.items() if one.constant]
    if constant:
        scalar = ", so that correlations with them are undefined"
        notes.append(
            f"images: {len(constant)} of {len(facts)} {prop} maps have one value throughout"
            f"{'' if property_of(prop).is_mask else scalar}: {listed(constant)}"
        )
    return notes


def listed(names: Iterable[str]) -> str:
    """Join the first names for a message, and state how many more there are."""
    names = list(names)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
