"""Registry of the properties of an image that labelers measure and probes predict.

Everything that depends on a property is a field of its `Property` record, so that no other module
needs to compare names of properties.  `register_property` adds a property; studies may then name a
labeler for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CLASS = "class"
"""Name of the class label, one per image; classes are labeled but not probed."""


@dataclass(frozen=True, kw_only=True)
class MapFormat:
    """Rules for checking and resizing the exact maps that a user gives as files.

    Attributes:
        minimum: smallest allowed value; None allows any.
        two_levels: True if a map must have two levels, 0 and another number, which becomes 1.
        mean_of_colors: True takes the mean of three float channels that differ, such as those of
            coloured light; False refuses such a map.
        resampling: method of resizing a map to the size of the image.
    """

    minimum: float | None = None
    two_levels: bool = False
    mean_of_colors: bool = False
    resampling: Literal["nearest", "bilinear"] = "bilinear"


@dataclass(frozen=True, kw_only=True)
class InterventionDefaults:
    """Default settings for interventions on a property.

    Attributes:
        kind: kind of probe whose weights determine the edit.
        metrics: metrics that compare an edited image's map with its target; the first is the main
            one.
        dose: amplitude of the target, in standard deviations of the probe's prediction, to which
            the property is edited by default (`Intervention.doses`).
        published_steps: number of the first sampler steps that Chen et al. (2023) edit; None if
            they do not edit the property.
        published_layers: glob patterns of the layers that they edit.
        published_stretch: half the range, in standard deviations, to which they stretch a target
            map; None if they do not.
    """

    kind: str
    metrics: tuple[str, ...]
    dose: float
    published_steps: int | None = None
    published_layers: tuple[str, ...] = ("*",)
    published_stretch: float | None = None


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Colour scale with which maps of a property are drawn in figures.

    Attributes:
        colormap: name of a matplotlib colour map.
        limits: values at both ends of the scale; None takes the extremes of the label map.
    """

    colormap: str = "viridis"
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Property:
    """Description of a property of images, such as depth.

    Attributes:
        name: key in ``labels`` of a study, and name of arrays: lowercase letters, digits and _.
        title: name of the property in text.
        kind: ``mask`` for a map that a threshold turns into a region, which is scored; ``scalar``
            for a map with one number per pixel.
        metrics: names of the metrics that score predictions
            (`ldmprobe_core.probing.metrics.METRICS`); the first is the main one.  The metric
            ``<name>_partial`` first regresses the training mean map out of label and prediction,
            so that a prediction from position alone has no score.
        map_format: rules for exact maps that are given as files.
        drawing: colour scale in figures.
        intervention: default settings of edits; None if edits are not supported.
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
        """Flag that is True if labels are boolean masks, so that predictions are thresholded."""
        return self.kind == "mask"

    @property
    def partial_metric(self) -> str | None:
        """Name of the main metric with position regressed out; None if the property lacks it."""
        name = f"{self.metrics[0]}_partial"
        return name if name in self.metrics else None

    @property
    def compared(self) -> tuple[str, ...]:
        """Metrics in which the shuffled-label control, whose labels are of other images, is scored.

        They are the main metric, its partial form, and AUROC, if the property has them.
        """
        return tuple(
            m for m in self.metrics if m in (self.metrics[0], self.partial_metric, "auroc")
        )


PROPERTIES: dict[str, Property] = {}
"""Registered properties by name, in the order in which they are stored and displayed."""

_RESERVED = {CLASS, "classes", "threshold", "maps", "labeler", "count"}


def register_property(new: Property) -> Property:
    """Register a property; studies may then name a labeler for it under ``labels``.

    Raises:
        ValueError: the name is taken, reserved or not a lowercase identifier, or the property has
            no metrics.
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
    """Return the description of a registered property.

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
    """Return the names of the registered properties, in the order of registration."""
    return tuple(PROPERTIES)


_MAP_METRICS = ("spearman", "pearson", "rmse", "spearman_partial", "pearson_partial")

FOREGROUND = register_property(
    Property(
        name="foreground",
        title="foreground",
        kind="mask",
        metrics=("dice", "iou", "auroc", "average_precision"),
        map_format=MapFormat(two_levels=True, resampling="nearest"),
        drawing=Drawing(colormap="gray", limits=(0, 1)),
        intervention=InterventionDefaults(
            kind="logistic",
            metrics=("dice",),
            dose=8.0,
            published_steps=5,
            published_layers=("up_blocks.*",),
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
            kind="ridge",
            metrics=("spearman_partial", "spearman", "rmse"),
            dose=8.0,
            published_steps=3,
            published_stretch=9.0,
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
        intervention=InterventionDefaults(
            kind="ridge", metrics=("spearman_partial", "spearman", "rmse"), dose=8.0
        ),
    )
)
