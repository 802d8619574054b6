"""Settings of an intervention and their validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
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
from ldmprobe_core.interventions.null_directions import NULLS
from ldmprobe_core.interventions.targets import Target
from ldmprobe_core.study.loading import sentence
from ldmprobe_core.study.probe_kinds import ADAM, PROBE_KINDS, ProbeKind
from ldmprobe_core.study.properties import (
    FOREGROUND,
    PROPERTIES,
    InterventionDefaults,
    Property,
    property_of,
)
from ldmprobe_core.study.readers.value_types import MAX_SAMPLES, Seed

EDITED = "edited"
"""Name of the condition of the edit proper, beside the null edits."""

DEFAULT_CONFIDENCE = 0.98

PROBE_EDITS = ("exact", "adam")
ERASURES = ("leace", "mean_projection")
DONOR = "donor"

APPLICABLE = {
    "targets": PROBE_EDITS,
    "doses": ("exact",),
    "strength": ("exact", *ERASURES),
    "confidence": ("exact",),
    "metric": ("exact",),
    "iterations": ("adam",),
    "learning_rate": ("adam",),
    "kind": PROBE_EDITS,
}
"""Methods to which a setting applies, by name of the setting; others apply to every method.

In a causal map, ``kind`` also chooses the probes whose scores are shown beside the effects, so it
applies to every method there.
"""

Dose = Annotated[float, Field(gt=0, le=1000, strict=True)]


class Intervention(BaseModel):
    """Settings of an intervention: what is edited, where, how strongly, and the null edits.

    Settings can be read in a process that has not read the run's study yet, which registers the
    study's own properties and kinds of probes.  `plan_intervention` therefore checks `prop` and
    `kind`, and nothing here looks them up but the properties that depend on them.

    Attributes:
        prop: name of the edited property, which must define edits (`Property.intervention`).
        targets: target transformations; each sample is edited towards each target.  Erasures and
            donors have no targets, and refuse any but the default.
        samples: number of samples to edit; the first ones of the split `part` are taken.
        chosen: indices of the samples to edit, in increasing order, instead of `samples`.
        method: what replaces the activations:

            - ``exact``: the nearest activations from which the probe predicts the target;
            - ``adam``: those that gradient descent on the probe's loss finds (Chen et al. 2023);
            - ``leace``: the activations without what a linear probe can learn of the property
              beyond its mean map (LEACE, Belrose et al. 2023, theorem 4.2, from the training
              activations);
            - ``mean_projection``: the activations without their component along the covariance
              with the property's label less its mean map;
            - ``donor``: the activations of another sample, one of the same prompt if there is one.
        start: first edited step, from 1.
        steps: number of edited steps; by default half of the sampler's steps, rounded up.
        layers: globs that select layers of the run (see `matching_layers`), by default all; the
            name ``latents`` selects the denoiser's input.
        windows: None edits all layers in all of these steps together.  A number makes a causal
            map: the sampler's steps are divided into as many windows, and the edit is made in one
            layer and one window at a time; the denoiser's input is one more row of the map.
        doses: amplitudes of the target, in standard deviations of the probe's prediction (see
            `EditDirection.at_dose`), in increasing order; each is a separate edit, and a causal
            map has one.  None takes the property's default dose for exact edits, and an empty list
            takes the target in its own units, as ``adam`` always does.
        kind: kind of the linear probes that give the edit directions.  None takes the property's
            default kind or, if the run lacks it, another one, for masks one that predicts logits.
        confidence: target probability inside a mask; outside, it is 1 - confidence.  At a given
            dose it only matters for shares between 0 and 1.
        strength: fraction, 0..1, of the difference between prediction and target that an exact
            edit or an erasure removes in each cell.
        metric: norm that an exact edit minimises: ``l2``, or ``covariance`` (the inverse covariance
            of the activations).
        iterations: number of gradient steps of the method ``adam``.
        learning_rate: learning rate of the method ``adam``.
        controls: names of null edits (`ldmprobe_core.interventions.null_directions.NULLS`); None
            takes all that apply, in a causal map ``orthogonal`` alone.
        part: split from which the edited samples come; validation is for tuning settings.
        seed: seed of the random directions, and of the permutations of the labels (`permuted`)
            unless the run stores sums, which have the permutations of its study.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prop: str = FOREGROUND.name
    targets: tuple[Target, ...] = (Target(dx=0.2),)
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES, strict=True)] = 8
    chosen: tuple[Annotated[int, Field(ge=0, lt=MAX_SAMPLES, strict=True)], ...] | None = None
    method: Literal["exact", "adam", "leace", "mean_projection", "donor"] = "exact"
    start: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 1
    steps: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    layers: tuple[str, ...] | None = None
    windows: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    doses: tuple[Dose, ...] | None = None
    kind: str | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1, strict=True)] = DEFAULT_CONFIDENCE
    strength: Annotated[float, Field(ge=0, le=1, strict=True)] = 1.0
    metric: Literal["l2", "covariance"] = "covariance"
    iterations: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 128
    learning_rate: Annotated[float, Field(gt=0, le=1000, strict=True)] = 5e-3
    controls: tuple[str, ...] | None = None
    part: Literal["test", "validation"] = "test"
    seed: Annotated[Seed, Field(strict=True)] = 0

    @field_validator("chosen")
    @classmethod
    def _named_once(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Check that the list of samples is not empty and has no duplicates, and sort it."""
        if value == ():
            raise ValueError(
                "no sample is named ([]). Fix: name samples, or leave chosen out to take the first "
                "ones of the split."
            )
        repeated = [i for i in value or () if value is not None and value.count(i) > 1]
        if repeated:
            raise ValueError(
                f"a sample is named twice ({repeated[0]}). Fix: name each sample once."
            )
        # Sort, because a run's arrays are read in increasing order of the sample index.
        return value if value is None else tuple(sorted(value))

    @field_validator("doses")
    @classmethod
    def _increasing(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """Sort the doses."""
        return value if value is None else tuple(sorted(value))

    @field_validator("controls")
    @classmethod
    def _known_nulls(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Check that the null edits are registered, and bring them into the order of `NULLS`."""
        for name in value or ():
            if name not in NULLS:
                raise ValueError(
                    f"{name!r} is not a null edit. Fix: choose from {', '.join(NULLS)}."
                )
        # Put the null edits in a fixed order, so that their order in the settings does not change
        # the hash in the intervention's name.
        return value if value is None else tuple(name for name in NULLS if name in value)

    @model_validator(mode="after")
    def _distinct(self) -> Intervention:
        """Check that targets and doses are distinct, and that all settings fit each other."""
        if len(set(self.targets)) < len(self.targets) or not self.targets:
            raise ValueError(
                "targets are empty or repeated. Fix: give one or more distinct targets."
            )
        fields = type(self).model_fields
        changed = [name for name in fields if getattr(self, name) != fields[name].default]
        self._require_applicable(changed)
        if self.doses is not None and len(set(self.doses)) < len(self.doses):
            raise ValueError("doses are repeated. Fix: give distinct doses.")
        if self.windows is not None and len(self.doses or ()) > 1:
            doses = ", ".join(f"{dose:g}" for dose in self.doses or ())
            raise ValueError(
                f"doses: a causal map has one dose ({doses}). Fix: give one dose, and make another "
                "map for another dose."
            )
        if self.windows is not None and (self.start, self.steps) != (1, None):
            raise ValueError(
                "start and steps do not apply to a causal map, whose windows cover all steps "
                f"(windows is {self.windows}). Fix: leave out start and steps, or windows."
            )
        without = [name for name in self.controls or () if name not in self.possible_nulls]
        if without:
            raise ValueError(
                f"controls: {without[0]} is not a null edit of the method {self.method}. Fix: "
                f"choose from {', '.join(self.possible_nulls) or 'no controls'}."
            )
        return self

    def _require_applicable(self, names: Iterable[str]) -> None:
        """Refuse settings that have no effect.

        Args:
            names: names of the given settings.

        Raises:
            ValueError: a setting does not apply to the method, or `samples` is given with `chosen`.
        """
        for name in names:
            methods = APPLICABLE.get(name, (self.method,))
            if self.method in methods or (name == "kind" and self.windows):
                continue
            value = getattr(self, name)
            if isinstance(value, tuple):
                value = "; ".join(map(str, value))
            raise ValueError(
                f"{name}: the method {self.method} does not use it ({value}). Fix: leave {name} "
                f"out, or set method to {' or '.join(methods)}."
            )
        if self.chosen is not None and "samples" in names:
            raise ValueError(
                f"samples: it does not apply to chosen samples ({self.samples}). Fix: leave out "
                "samples or chosen."
            )

    @property
    def edited_property(self) -> Property:
        """`Property` that describes the edited property."""
        return property_of(self.prop)

    @property
    def possible_nulls(self) -> tuple[str, ...]:
        """Names of the null edits that the method can have."""
        if self.method in ERASURES:
            return ("orthogonal", "coherent")
        return tuple(NULLS) if self.method in PROBE_EDITS else ()

    @property
    def conditions(self) -> tuple[str, ...]:
        """Conditions under which samples are edited: the edit proper, then the null edits."""
        nulls = self.controls
        if nulls is None:
            nulls = self.possible_nulls[:1] if self.windows else self.possible_nulls
        return (EDITED, *nulls)

    @property
    def dose_axis(self) -> tuple[float, ...]:
        """Doses in standard deviations of the prediction; one NaN if targets are not scaled."""
        if self.doses:
            return self.doses
        own_units = self.doses is not None or self.method != "exact"
        return (float("nan"),) if own_units else (self.defaults.dose,)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets; "own label" for erasures, "donor's label" for method ``donor``."""
        if self.method in ERASURES:
            return ("own label",)
        return ("donor's label",) if self.method == DONOR else tuple(map(str, self.targets))

    @property
    def defaults(self) -> InterventionDefaults:
        """Default settings for edits of the property."""
        defaults = property_of(self.prop).intervention
        if defaults is None:
            raise UserError(
                f"prop: interventions on this property are not defined ({self.prop!r}). Fix: "
                "choose another property."
            )
        return defaults

    @property
    def name(self) -> str:
        """Name of the intervention in a run: property, method and hash of all settings."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        return f"{self.prop}-{self.method}-{digest}"


def predicts_for_descent(kind: ProbeKind, prop: Property) -> bool:
    """Return whether edits of a property by gradient descent can use a kind of probe.

    If the property is a mask, the probe must predict logits.
    """
    return kind.supports(prop) and (not prop.is_mask or kind.mask_output == "logit")


def parse_intervention(content: dict[str, Any]) -> Intervention:
    """Build an `Intervention` from a mapping of its fields.

    Raises:
        UserError: a field is unknown or has a wrong value, or has no effect beside the others; the
            message names the first of these fields.
    """
    try:
        spec = Intervention.model_validate(content)
        # Refuse a field that is given but has no effect, even if its value is the default.
        spec._require_applicable([name for name, value in content.items() if value is not None])
    except ValidationError as error:
        problem = sentence(error, Intervention, "intervention")
        raise UserError(f"intervention: {problem}") from None
    except ValueError as error:
        raise UserError(f"intervention: {error}") from None
    return spec


def published_settings(prop: str, kinds: Iterable[str]) -> dict[str, Any]:
    """Return the fields of an `Intervention` as Chen, Viégas & Wattenberg (2023) set them.

    They descend on the loss of a probe without a position term: for foreground in the decoder's
    layers in the first 5 steps, and for depth in all layers in the first 3 steps, with targets
    that are stretched to 9 standard deviations.

    Args:
        prop: name of the edited property.
        kinds: kinds of probes of the run.  The paper's own, ``adam``, is preferred to other kinds
            without a position term.

    Raises:
        UserError: they do not edit this property, or no kind of probe is without a position term.
    """
    defaults = PROPERTIES[prop].intervention if prop in PROPERTIES else None
    if defaults is None or defaults.published_steps is None:
        raise UserError(
            f"prop: the paper does not edit this property ({prop!r}). Fix: leave out the published "
            "settings."
        )
    record = PROPERTIES[prop]
    usable = [
        kind.name
        for kind in PROBE_KINDS.values()
        if kind.linear and not kind.position_term and predicts_for_descent(kind, record)
    ]
    usable.sort(key=lambda name: name != ADAM.name)
    chosen = [name for name in usable if name in kinds]
    if not chosen:
        raise UserError(
            f"kind: the published settings need probes of {prop} without a position term, and the "
            f"run has none ({', '.join(kinds)}). Fix: add {' or '.join(usable)} to probes.kinds of "
            "the study, and make a new run."
        )
    return {
        "prop": prop,
        "method": "adam",
        "kind": chosen[0],
        "start": 1,
        "steps": defaults.published_steps,
        "layers": defaults.published_layers,
        "targets": ({"dx": 0.2, "stretch": defaults.published_stretch},),
    }
