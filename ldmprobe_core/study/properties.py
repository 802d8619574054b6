"""Properties of an image that labelers read and probes predict, one record each.

Everything that depends on a property is a field of its `Property` record; no other module compares
property names.  `register_property` adds one, and studies may then name a labeler for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CLASS = "class"
"""Name of the class label, one per image; classes are labeled but not probed."""


@dataclass(frozen=True, kw_only=True)
class MapFormat:
    """Checks and resampling of exact maps that a user gives as files.

    Attributes:
        minimum: smallest allowed value; None allows any.
        two_levels: maps have two levels, 0 and one other, which becomes 1.
        mean_of_colors: of three float channels that differ, such as coloured light, the mean is
            taken; otherwise they are refused.
        resampling: used when a map is resized to the image.
    """

    minimum: float | None = None
    two_levels: bool = False
    mean_of_colors: bool = False
    resampling: Literal["nearest", "bilinear"] = "bilinear"


@dataclass(frozen=True, kw_only=True)
class InterventionDefaults:
    """The paper's settings for editing a property.

    Attributes:
        steps: number of edited steps, from the first.
        layers: globs over layer names.
        kind: kind of probe that is edited through.
        metrics: agreement of an edited image's map with its target, headline first.
    """

    steps: int
    layers: tuple[str, ...]
    kind: str
    metrics: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Colour scale of a map in figures.

    Attributes:
        colormap: name of a matplotlib colour map.
        limits: values of its two ends; None takes the smallest and largest of the label map.
    """

    colormap: str = "viridis"
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Property:
    """A property of an image.

    Attributes:
        name: key in ``labels`` of a study, and name of arrays: lowercase letters, digits and _.
        title: name in text.
        kind: ``mask``, a map that is cut at a threshold and scored as a region; ``scalar``, a map
            of one value a pixel.
        metrics: names of the metrics that score it (`ldmprobe_core.probing.metrics.METRICS`),
            headline first.  A metric ``<name>_residual`` is the same with the training mean map
            subtracted from label and prediction, so that position alone scores nothing.
        map_format: checks of exact maps given as files.
        drawing: colour scale in figures.
        intervention: defaults of edits; None if edits are not supported.
    """

    name: str
    title: str
    kind: Literal["mask", "scalar"]
    metrics: tuple[str, ...]
    map_format: MapFormat = MapFormat()
    drawing: Drawing = Drawing()
    intervention: InterventionDefaults | None = None

    @property
    def is_mask(self) -> bool:
        """Whether labels are boolean masks, and predictions are cut at a threshold."""
        return self.kind == "mask"

    @property
    def residual_metric(self) -> str | None:
        """The residual form of the headline metric; None if the property has none."""
        name = f"{self.metrics[0]}_residual"
        return name if name in self.metrics else None


PROPERTIES: dict[str, Property] = {}
"""Registered properties by name, in the order in which they are stored and shown."""

_RESERVED = {CLASS, "classes", "threshold", "maps", "labeler", "count"}


def register_property(new: Property) -> Property:
    """Add a property; studies may then name a labeler for it under ``labels``.

    Raises:
        ValueError: its name is taken, reserved or not a lowercase identifier, or it has no metrics.
    """
    if new.name in PROPERTIES or new.name in _RESERVED:
        raise ValueError(f"property {new.name!r}: the name is taken. Fix: choose another.")
    if not new.name.isidentifier() or not new.name.isascii() or new.name != new.name.lower():
        raise ValueError(
            f"property {new.name!r}: not a lowercase identifier. Fix: use letters, digits and _."
        )
    if not new.metrics:
        raise ValueError(f"property {new.name!r}: no metrics. Fix: name at least one.")
    PROPERTIES[new.name] = new
    return new


def property_of(name: str) -> Property:
    """The record of a registered property.

    Raises:
        KeyError: no property of this name is registered.
    """
    try:
        return PROPERTIES[name]
    except KeyError:
        raise KeyError(
            f"property {name!r} is not registered. Fix: use one of {', '.join(PROPERTIES)}"
        ) from None


def map_properties() -> tuple[str, ...]:
    """Names of the properties that are maps and probed per pixel, in their order."""
    return tuple(PROPERTIES)


_MAP_METRICS = ("spearman", "pearson", "rmse", "spearman_residual", "pearson_residual")

FOREGROUND = register_property(
    Property(
        name="foreground",
        title="foreground",
        kind="mask",
        metrics=("dice", "iou"),
        map_format=MapFormat(two_levels=True, resampling="nearest"),
        drawing=Drawing(colormap="gray", limits=(0, 1)),
        intervention=InterventionDefaults(
            steps=5, layers=("up_blocks.*",), kind="logistic", metrics=("dice",)
        ),
    )
)
DEPTH = register_property(
    Property(
        name="depth",
        title="depth",
        kind="scalar",
        metrics=_MAP_METRICS,
        intervention=InterventionDefaults(
            steps=3, layers=("*",), kind="ridge", metrics=("spearman", "rmse")
        ),
    )
)
SHADING = register_property(
    Property(
        name="shading",
        title="shading",
        kind="scalar",
        metrics=_MAP_METRICS,
        map_format=MapFormat(minimum=0, mean_of_colors=True),
    )
)
