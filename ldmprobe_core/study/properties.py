"""Registry of the properties of an image that labelers measure and probes predict.

Everything that depends on a property is a field of its `Property` record, so that no other module
needs to compare names of properties.  `register_property` adds a property; studies may then name a
labeler for it.  A study that labels a property that is not built in carries its record
(`ldmprobe_core.study.extensions.declarations`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ldmprobe_core.study.extensions.components import Component, component_records
from ldmprobe_core.study.readers.value_types import Section

CLASS = "class"
"""Name of the class label, one per image; classes are labeled but not probed."""


class MapFormat(Section):
    """Rules for checking and resizing the ground-truth maps that a user gives as files.

    Attributes:
        minimum: smallest allowed value; None allows any.
        two_levels: True if a map must have two levels, 0 and another number, which becomes 1.
        mean_of_colors: True takes the mean of three float channels that differ, such as those of
            coloured light; False refuses such a map.
        resampling: method of resizing a map to the size of the image.
    """

    minimum: Annotated[float, Field(ge=-1e30, le=1e30)] | None = None
    two_levels: bool = False
    mean_of_colors: bool = False
    resampling: Literal["nearest", "bilinear"] = "bilinear"


class InterventionDefaults(Section):
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
    metrics: tuple[str, ...] = Field(strict=False)
    dose: float = Field(gt=0, le=1000)
    published_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    published_layers: tuple[str, ...] = Field(("*",), strict=False)
    published_stretch: Annotated[float, Field(gt=0, le=1000)] | None = None


class Drawing(Section):
    """Colour scale with which maps of a property are drawn in figures.

    Attributes:
        colormap: name of a matplotlib colour map.
        limits: values at both ends of the scale, the lower one first; None takes the extremes of
            the label map.
    """

    colormap: str = "viridis"
    limits: Annotated[tuple[float, float], Field(strict=False)] | None = None

    @field_validator("limits")
    @classmethod
    def _ascending(cls, limits: tuple[float, float] | None) -> tuple[float, float] | None:
        """Reject a scale without extent, and one from high to low."""
        if limits is not None and not limits[0] < limits[1]:
            raise ValueError(
                f"the first limit is not below the second ({limits[0]:g}, {limits[1]:g}). Fix: "
                "give the lower one first, such as [0, 1]"
            )
        return limits


METRICS_OF_KIND: dict[str, tuple[str, ...]] = {
    "number": ("spearman",),
    "mask": ("dice", "iou", "auroc", "average_precision"),
    "scalar": ("spearman", "pearson", "rmse", "spearman_partial", "pearson_partial"),
}
"""Built-in metrics of each kind of property, the main metric first."""

HEADLINES = {"number": ("spearman",), "mask": ("dice",), "scalar": ("spearman", "pearson")}
"""Built-in metrics of each kind that may be the main metric; larger is better."""

REGISTERED_METRICS: set[str] = set()
"""Names of metrics that are not built in (`ldmprobe_core.probing.metrics.register_metric`)."""


class Property(Section):
    """Description of a property of images, such as depth.

    Fields that are left out have defaults by kind.

    Attributes:
        name: key in ``labels`` of a study, and name of arrays: lowercase letters, digits and _.
        title: name of the property in text; by default its name with spaces.
        kind: ``mask`` for a map that a threshold turns into a region, which is scored; ``scalar``
            for a map with one number per pixel; ``number`` for one number per image.
        metrics: names of the metrics that score predictions
            (`ldmprobe_core.probing.metrics.METRICS`); the first is the main one.  The metric
            ``<name>_partial`` first regresses the training mean map out of label and prediction,
            so that a prediction from position alone has no score.
        map_format: rules for ground-truth maps that are given as files.
        drawing: colour scale in figures.
        intervention: default settings of edits; None if edits are not supported.
        component: place in a vector property; None if the property is not a part of one.
    """

    name: str
    title: str = ""
    kind: Literal["mask", "scalar", "number"]
    metrics: tuple[str, ...] = Field((), strict=False)
    map_format: MapFormat = MapFormat()
    drawing: Drawing = Drawing()
    intervention: InterventionDefaults | None = None
    component: Component | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, content: Any) -> Any:
        """Fill in missing fields: the title from the name, others from the kind of the property."""
        if not isinstance(content, dict):
            return content
        title = str(content.get("name")).replace("_", " ")
        kind = content.get("kind")
        of_kind = _DEFAULTS.get(kind, {}) if isinstance(kind, str) else {}
        metrics = content.get("metrics")
        if of_kind and isinstance(metrics, (list, tuple)):
            if edits := of_kind["intervention"]:
                present = tuple(name for name in edits.metrics if name in metrics)
                edits = edits.model_copy(update={"metrics": present or tuple(metrics[:1])})
            of_kind = of_kind | {"intervention": edits}
        return {"title": title, **of_kind, **content}

    @model_validator(mode="after")
    def _scored(self) -> Property:
        """Check that the metrics are distinct, known and suited to the property's kind."""
        usable = METRICS_OF_KIND[self.kind]
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            problem = f"metrics is {list(self.metrics)}"
            raise ValueError(f"{problem}. Fix: choose from {', '.join(usable)}, each once")
        for name in self.metrics:
            if name not in usable and name not in REGISTERED_METRICS:
                raise ValueError(
                    f"metrics has {name!r}, which does not score a {self.kind}. Fix: choose from "
                    f"{', '.join(usable)}"
                )
        # The first metric is the main metric: the cell with its largest value is the best cell.
        # Some controls exist for certain metrics only, so the main metric must be one of those.
        # Masks are cut where their Dice is best, which may be a bad cut for a registered metric.
        headlines, registered = HEADLINES[self.kind], () if self.is_mask else REGISTERED_METRICS
        if self.metrics[0] not in headlines and self.metrics[0] not in registered:
            raise ValueError(
                f"metrics begins with {self.metrics[0]!r}, which cannot be the main metric of a "
                f"{self.kind}. Fix: begin with {' or '.join(headlines)}"
            )
        missing = set(self.intervention.metrics if self.intervention else ()) - set(self.metrics)
        if missing:
            raise ValueError(
                f"intervention.metrics has {min(missing)!r}, which is not in metrics. Fix: choose "
                f"from {', '.join(self.metrics)}"
            )
        return self

    @property
    def is_mask(self) -> bool:
        """Flag that is True if labels are boolean masks, so that predictions are thresholded."""
        return self.kind == "mask"

    @property
    def partial_metric(self) -> str | None:
        """Name of the main metric's partial form (position regressed out); None if not in use."""
        name = f"{self.metrics[0]}_partial"
        return name if name in self.metrics else None

    @property
    def compared(self) -> tuple[str, ...]:
        """Metrics by which the probe is compared with the shuffled-label control.

        They are the main metric, its partial form, and AUROC, if the property has them.
        """
        return tuple(
            m for m in self.metrics if m in (self.metrics[0], self.partial_metric, "auroc")
        )


_DEFAULTS: dict[str, dict[str, Any]] = {
    "number": {"metrics": METRICS_OF_KIND["number"], "intervention": None},
    "mask": {
        "metrics": METRICS_OF_KIND["mask"],
        "map_format": MapFormat(two_levels=True, resampling="nearest"),
        "drawing": Drawing(colormap="gray", limits=(0, 1)),
        "intervention": InterventionDefaults(kind="logistic", metrics=("dice",), dose=8.0),
    },
    "scalar": {
        "metrics": METRICS_OF_KIND["scalar"],
        "intervention": InterventionDefaults(
            kind="ridge", metrics=("spearman_partial", "spearman", "rmse"), dose=8.0
        ),
    },
}
"""Fields of a `Property` that its kind determines unless they are given."""

SHARE_TOLERANCE = 0.01
"""Distance from 0..1 that labels of a mask may have, as an interpolation may leave."""

PROPERTIES: dict[str, Property] = {}
"""Registered properties by name."""

_RESERVED = {
    CLASS, "classes", "threshold", "maps", "labeler",
    "accumulator", "buffer", "class_score", "count", "sample", "step", "timestep", "x", "y",
}  # fmt: skip
"""Keys of ``labels``, and names of dimensions and arrays beside a property's arrays in a run."""


def _bytes_of(record: Property) -> tuple[object, ...]:
    """Return the fields that affect stored results; omit figure and intervention settings."""
    return record.kind, record.metrics, record.map_format, record.component


def register_property(new: Property) -> Property:
    """Register a property; studies may then name a labeler for it under ``labels``.

    A property may be registered again if runs of both have the same bytes, so with another title
    or colour; the new record replaces the other.

    Raises:
        ValueError: the name is reserved, not a lowercase identifier, or taken by a property with
            another definition.
    """
    taken = PROPERTIES.get(new.name)
    if new.name in _RESERVED or (new.name in _BUILT_IN and new != taken):
        raise ValueError(f"property {new.name!r}: the name is taken. Fix: choose another.")
    if taken is not None and _bytes_of(new) != _bytes_of(taken):
        # A process has one registry for all runs, so a second definition would change the meaning
        # of runs that are already open.
        raise ValueError(
            f"property {new.name!r}: the name is taken in this process by another definition. "
            "Fix: choose another name, or start a new process."
        )
    _require_one_vector(new)
    if not new.name.isidentifier() or not new.name.isascii() or new.name != new.name.lower():
        raise ValueError(
            f"property {new.name!r}: not a lowercase identifier. Fix: use letters, digits and _."
        )
    PROPERTIES[new.name] = new
    return new


def register_properties(records: Iterable[Property]) -> None:
    """Register several properties; if one of them is refused, register none."""
    before = dict(PROPERTIES)
    try:
        for record in records:
            register_property(record)
    except ValueError:
        PROPERTIES.clear()
        PROPERTIES.update(before)
        raise


def _require_one_vector(new: Property) -> None:
    """Check that a vector's name is not a property's, and that its components are consistent.

    Raises:
        ValueError: it stands for something else in this process.
    """
    vectors = {one.component.vector for one in PROPERTIES.values() if one.component}
    vector = new.component.vector if new.component else None
    others = [
        one.component
        for one in PROPERTIES.values()
        if one.component and one.component.vector == vector and one.name != new.name
    ]
    if (
        new.name in vectors
        or vector in PROPERTIES
        or any(
            new.component
            and (
                one.index == new.component.index
                or one.size != new.component.size
                or one.joint != new.component.joint
            )
            for one in others
        )
    ):
        raise ValueError(
            f"property {vector or new.name!r}: the name is taken in this process by another "
            "definition, of a vector or its components. Fix: choose another name, or start a new "
            "process."
        )


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
    """Return the names of the registered properties, in the order in which runs store them.

    Built-in properties come first.  The others are sorted by name, because the order in which a
    process registers them depends on the studies that it has read.
    """
    return with_built_in(PROPERTIES)


def with_built_in(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the built-in map properties, then of the given other ones, sorted.

    Args:
        names: names of properties, such as those that a study declares.  The built-in ones are
            added, and numbers are left out, since they are no maps.
    """
    return (*_BUILT_IN, *sorted({*names} - {*_BUILT_IN} - {*numbers_in(names)}))


def numbers_in(names: Iterable[str]) -> tuple[str, ...]:
    """Return those properties that are one number per image, sorted by name."""
    return tuple(
        sorted(one for one in names if one in PROPERTIES and PROPERTIES[one].kind == "number")
    )


def is_built_in(prop: str) -> bool:
    """Return whether a property is part of this package, so that every process knows it."""
    return prop in _BUILT_IN


_BUILT_IN: tuple[str, ...] = ()

FOREGROUND = register_property(
    Property(
        name="foreground",
        kind="mask",
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
        kind="scalar",
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
    Property(name="shading", kind="scalar", map_format=MapFormat(minimum=0, mean_of_colors=True))
)
EDGES = register_property(Property(name="edges", kind="mask"))
_NORMAL = {
    "components": ("x", "y", "z"),
    "title": "surface normal",
    "drawing": Drawing(colormap="coolwarm", limits=(-1, 1)),
}
NORMALS = tuple(
    register_property(Property(name=name, **fields))
    for name, fields in (component_records("normals", "vector", _NORMAL) or {}).items()
)
"""Components of the surface normal, in the camera's axes: right, up, towards the camera."""
_BUILT_IN = tuple(PROPERTIES)
