"""Settings of an intervention and their validation."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.targets import Target
from ldmprobe_core.study.loading import sentence
from ldmprobe_core.study.probe_kinds import PROBE_KINDS
from ldmprobe_core.study.properties import (
    FOREGROUND,
    PROPERTIES,
    InterventionDefaults,
    property_of,
)
from ldmprobe_core.study.readers.value_types import MAX_SAMPLES, Seed

EDIT_CONDITIONS = ("edited", "random", "shuffled")

DEFAULT_CONFIDENCE = 0.98


class Intervention(BaseModel):
    """Settings of an intervention.

    If `steps`, `layers` or `kind` is None, the property's defaults apply, which follow the paper
    (Chen, Viégas & Wattenberg 2023).

    Attributes:
        prop: name of the edited property, one of `editable_properties`.
        targets: target transformations; each sample is edited towards each target.
        samples: number of samples to edit; the first ones of the split `part` are taken.
        chosen: indices of the samples to edit, instead of `samples`.
        method: ``exact`` (closed form) or ``adam`` (the paper's gradient descent).
        steps: number of edited steps, counted from the first; by default 5 for foreground and 3
            for depth.
        layers: globs that select layers of the run; by default the decoder's layers for foreground
            and all layers for depth.
        kind: kind of the linear probes that give the edit directions.
        confidence: target probability inside a mask; outside, it is 1 - confidence.
        strength: fraction, 0..1, of the difference between prediction and target that an exact
            edit removes in each cell.
        metric: norm that an exact edit minimises: ``l2``, or ``covariance`` (the inverse covariance
            of the activations).
        iterations: number of gradient steps of the method ``adam``.
        learning_rate: learning rate of the method ``adam``.
        controls: whether to run two controls as well: random edits of the same norm, and edits by
            probes of shuffled labels.
        part: split from which the edited samples come; validation is for tuning settings.
        seed: seed of the random edits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prop: str = FOREGROUND.name
    targets: tuple[Target, ...] = (Target(dx=0.2),)
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES, strict=True)] = 8
    chosen: tuple[Annotated[int, Field(ge=0, lt=MAX_SAMPLES, strict=True)], ...] | None = None
    method: Literal["exact", "adam"] = "exact"
    steps: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    layers: tuple[str, ...] | None = None
    kind: str | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1, strict=True)] = DEFAULT_CONFIDENCE
    strength: Annotated[float, Field(ge=0, le=1, strict=True)] = 1.0
    metric: Literal["l2", "covariance"] = "covariance"
    iterations: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 128
    learning_rate: Annotated[float, Field(gt=0, le=1000, strict=True)] = 5e-3
    controls: bool = True
    part: Literal["test", "validation"] = "test"
    seed: Annotated[Seed, Field(strict=True)] = 0

    @field_validator("prop")
    @classmethod
    def _editable(cls, value: str) -> str:
        names = editable_properties()
        if value not in names:
            raise ValueError(f"{value!r} cannot be edited. Fix: choose one of {', '.join(names)}.")
        return value

    @field_validator("kind")
    @classmethod
    def _linear(cls, value: str | None) -> str | None:
        linear = [name for name, kind in PROBE_KINDS.items() if kind.linear]
        if value is not None and value not in linear:
            raise ValueError(
                f"{value!r} is not a linear kind of probe. Fix: choose one of {', '.join(linear)}."
            )
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Intervention:
        if len(set(self.targets)) < len(self.targets) or not self.targets:
            raise ValueError(
                "targets are empty or repeated. Fix: give one or more distinct targets."
            )
        if self.method == "adam" and (self.strength, self.confidence) != (1.0, DEFAULT_CONFIDENCE):
            raise ValueError(
                "strength and confidence apply to exact edits only (method is adam). Fix: leave "
                "both out, or set method to exact."
            )
        return self

    @property
    def defaults(self) -> InterventionDefaults:
        """Default settings for edits of the property, from Chen et al. (2023)."""
        defaults = property_of(self.prop).intervention
        if defaults is None:
            raise UserError(
                f"prop: interventions on this property are not defined ({self.prop!r}). Fix: "
                f"choose one of {', '.join(editable_properties())}."
            )
        return defaults

    @property
    def name(self) -> str:
        """Name of the intervention in a run: property, method and hash of all settings."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        return f"{self.prop}-{self.method}-{digest}"


def editable_properties() -> tuple[str, ...]:
    """Names of the registered properties that can be edited."""
    return tuple(name for name, prop in PROPERTIES.items() if prop.intervention is not None)


def parse_intervention(content: dict[str, Any]) -> Intervention:
    """Build an `Intervention` from a mapping of its fields.

    Raises:
        UserError: a field is unknown or has a wrong value; the message names the first of these
            fields.
    """
    try:
        return Intervention.model_validate(content)
    except ValidationError as error:
        raise UserError(f"intervention: {sentence(error)}") from None
