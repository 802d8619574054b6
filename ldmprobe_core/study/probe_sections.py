"""Sections of a study on labels, probes and their controls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from ldmprobe_core.study.conditions import CONDITIONS, PROBE_CONDITION
from ldmprobe_core.study.extensions.entry_points import PROBE_KIND_POINTS, load_entry_points
from ldmprobe_core.study.probe_kinds import PROBE_KINDS
from ldmprobe_core.study.properties import (
    CLASS,
    PROPERTIES,
    map_properties,
    numbers_in,
    with_built_in,
)
from ldmprobe_core.study.readers.value_types import (
    EXPONENT,
    MAX_SAMPLES,
    SampleCount,
    Section,
)

EXACT_MAPS = "maps"
"""Name that stands for a labeler where labels are read from map files beside the source images."""


class LabelerSpec(Section):
    """Name of a labeler, and its weights: a folder, a file or a hub id.

    In YAML, a labeler may be given by its name alone instead of a mapping.

    Attributes:
        name: name of a labeler (docs/models.md), or ``module:function``.
        weights: folder, file or hub id of its weights; None takes its default.
        revision: branch, tag or commit of a hub id.
    """

    name: str
    weights: str | None = None
    revision: str | None = None


def _named(value: Any) -> Any:
    """Convert a labeler given by its name alone to a mapping with the key ``name``."""
    if not isinstance(value, str | dict | LabelerSpec | None):
        # In YAML, `no` and `off` are false.
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        raise ValueError(
            f"this is not the name of a labeler ({shown:.60}). Fix: give a name, or null for no "
            "labeler"
        )
    return {"name": value} if isinstance(value, str) else value


_Reader = Annotated[LabelerSpec | None, BeforeValidator(_named)]
_TABLETOP = LabelerSpec(name="tabletop")


def _check_extra(section: type[Section], content: Any, known: Iterable[str]) -> Any:
    """Check that each key is a field or a registered name; drop registered names that are null.

    A null key means the same as an absent one, so both must give the study the same hash.
    """
    if not isinstance(content, dict):
        return content
    fields = [field.alias or name for name, field in section.model_fields.items()]
    for key in content:
        if key not in fields and key not in known:
            names = ", ".join([*fields, *(name for name in known if name not in fields)])
            raise ValueError(f"{key} is not a known key. Fix: use one of {names}")
    return {k: v for k, v in content.items() if k in fields or v is not None}


class Labels(Section):
    """Labeler of each property; a property whose labeler is None is not probed.

    Every other registered property is also a key, with None as its default: ``edges``, ``normals``,
    and those of the user.

    Attributes:
        foreground, depth, shading: labeler of this map property.
        classes: labeler of the object's class, which `ldmprobe classify` needs.
        threshold: probability in a labeler's foreground map above which a pixel counts as
            foreground.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Reader] = Field(init=False)

    foreground: _Reader = _TABLETOP
    depth: _Reader = _TABLETOP
    shading: _Reader = _TABLETOP
    classes: _Reader = Field(_TABLETOP, alias="class")
    threshold: Annotated[float, Field(ge=0, lt=1), EXPONENT] = 0.5

    def labeler(self, prop: str) -> LabelerSpec | None:
        """Return the labeler settings of a map property or of ``class``; None without a labeler."""
        if prop == CLASS:
            return self.classes
        return (self.__dict__ | (self.model_extra or {})).get(prop)

    def is_labeled(self, prop: str) -> bool:
        """Return whether a labeler makes the labels of a property; False for maps of files."""
        spec = self.labeler(prop)
        return spec is not None and spec.name != EXACT_MAPS

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the map properties: built-in ones first, then others, sorted."""
        known = with_built_in(self.model_extra or ())
        return tuple(prop for prop in known if self.labeler(prop) is not None)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the properties with one number per image, sorted."""
        names = numbers_in(self.model_extra or ())
        return tuple(prop for prop in names if self.labeler(prop) is not None)

    @model_validator(mode="before")
    @classmethod
    def _registered(cls, content: Any) -> Any:
        """Check that every key of ``labels`` is a field or the name of a registered property."""
        return _check_extra(cls, content, PROPERTIES)

    @model_validator(mode="after")
    def _something(self) -> Labels:
        """Check that some map property has a labeler, and that only map properties use ``maps``."""
        if not self.maps and self.numbers:
            raise ValueError(
                f"no map has a labeler, but numbers per image ({', '.join(self.numbers)}) are read "
                "beside at least one map. Fix: name a labeler for a map too, such as "
                "labels.foreground"
            )
        if not self.maps:
            raise ValueError(
                f"{', '.join(map_properties()[:-1])} and {map_properties()[-1]} are all null. Fix: "
                "name a labeler for at least one of these keys, or maps for maps beside source "
                "images"
            )
        for prop in (CLASS, *self.numbers):
            labeler = self.labeler(prop)
            if labeler is not None and labeler.name == EXACT_MAPS:
                raise ValueError(
                    f"{prop} is 'maps', the reader of map files, but {prop} is not a map property. "
                    "Fix: name another labeler, or null"
                )
        return self


class Split(Section):
    """Shares of the prompts for training, choosing and scoring probes; they add up to 1.

    Attributes:
        train, validation, test: share of the prompts in this part.
        heldout: approximate number of samples to hold out; ``validation`` and ``test`` give the
            proportion in which they are divided.  None divides all samples by the three shares.
    """

    train: Annotated[float, Field(gt=0, lt=1), EXPONENT] = 0.45
    validation: Annotated[float, Field(gt=0, lt=1), EXPONENT] = 0.15
    test: Annotated[float, Field(gt=0, lt=1), EXPONENT] = 0.40
    heldout: Annotated[int, Field(ge=2, le=MAX_SAMPLES)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Split:
        """Check that the shares add up to 1."""
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the sum of train, validation and test is {total:g}. Fix: make it 1")
        return self


class Probes(Section):
    """Probes that are trained at each layer and step.

    Attributes:
        kinds: names of registered kinds, at least one of them linear.  ``ridge`` (all properties)
            and ``logistic`` (masks) add a linear function of a token to the training mean at its
            position; ``plain_ridge`` and ``plain_logistic`` have no such position term, and
            neither has ``adam``, the paper's protocol for all properties, which is slow.
        penalties: L2 penalties to choose from by the score on the validation split, in units of
            the layer's mean channel variance.
        split: how prompts are divided.
    """

    kinds: tuple[str, ...] = Field(("ridge", "logistic"), strict=False, min_length=1)
    penalties: tuple[Annotated[float, Field(ge=1e-12, le=1e12), EXPONENT], ...] = Field(
        tuple(10.0**exponent for exponent in range(-7, 3)), strict=False, min_length=1
    )
    split: Split = Split()

    @model_validator(mode="after")
    def _distinct(self) -> Probes:
        """Check that no kind or penalty repeats, every kind is known, and some kind is linear."""
        for name in ("kinds", "penalties"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(
                    f"{name} has a value twice ({list(values)}). Fix: name each value once"
                )
        for kind in self.kinds:
            if kind not in PROBE_KINDS:
                # Importing the module registers the kind, which is looked up again below.
                load_entry_points(PROBE_KIND_POINTS, kind, "kinds")
            if kind not in PROBE_KINDS:
                raise ValueError(
                    f"kinds has {kind!r}, which is not known. Fix: choose from "
                    f"{', '.join(PROBE_KINDS)}, or install the package that offers this kind"
                )
        if not any(PROBE_KINDS[kind].linear for kind in self.kinds):
            raise ValueError(f"kinds is {list(self.kinds)}, none of them linear. Fix: add ridge")
        return self


class UntrainedWeights(Section):
    """Number of samples for the control that runs a denoiser with permuted or random weights.

    Attributes:
        samples: number of samples that this denoiser runs on as well, from all splits in
            proportion.  It is rounded up to complete batches.
    """

    samples: SampleCount = 160


def _switched(value: Any) -> Any:
    """Convert true to the default settings of the control, and false to None (off)."""
    return {True: UntrainedWeights(), False: None}[value] if isinstance(value, bool) else value


_Untrained = Annotated[UntrainedWeights | None, BeforeValidator(_switched)]


class Controls(Section):
    """Switches of the controls; the control that predicts from position alone is always on.

    Every other registered condition is also a key, and off by default.

    Attributes:
        latents: probe the noisy latents, the denoiser's input, at each step; a token's probe reads
            the 5 x 5 latent pixels around it.
        clean_pixels: probe the pixels of the predicted clean image at each step, averaged over
            the blocks of the latent grid; a token's probe reads the 3 x 3 blocks around it.  It
            needs step images of training samples, so it has no effect with ``capture.keep:
            statistics`` or ``trajectory.training: 0``.
        prompt: predict each map from the embedding of the image's prompt alone.  It has no effect
            with ``capture.keep: statistics`` and with source images, which share one prompt.
            Where enough test prompts have several images, the best probe's maps are also scored
            against the labels of other images of the same prompt.
        mlp: fit a probe with one hidden layer in each cell, which is slow.
        shuffled_labels: train probes on the labels of other training images.
        permutations: number of permutations of the images that `shuffled_labels` draws.  The
            smallest p value that it can show is 1 / (permutations + 1), so with fewer than 19 no
            probe counts as above the control.
        permuted_weights: probe a denoiser with permuted weight tensors, on the same latents; true
            takes the default number of samples, and false switches the control off.
        random_weights: probe a denoiser whose weights are drawn by its class, as before training,
            instead of one with permuted weights; true and false likewise.
    """

    shuffled_labels: bool = True
    permutations: Annotated[int, Field(ge=1, le=1000)] = 20
    permuted_weights: _Untrained = UntrainedWeights()
    # This key was added in a later release.  If it is off, it is not exported, so that the hashes
    # of older studies stay the same.
    random_weights: _Untrained = Field(None, exclude_if=lambda value: value is None)
    latents: bool = True
    clean_pixels: bool = True
    prompt: bool = True
    mlp: bool = False

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, bool] = Field(init=False)

    @model_validator(mode="before")
    @classmethod
    def _registered(cls, content: Any) -> Any:
        """Check that every key of ``controls`` is a field or the name of a registered control."""
        return _check_extra(cls, content, [name for name in CONDITIONS if name != PROBE_CONDITION])

    @model_validator(mode="after")
    def _one_untrained(self) -> Controls:
        """Check that at most one of the two controls with an untrained denoiser is on."""
        if self.permuted_weights and self.random_weights:
            raise ValueError(
                "random_weights and permuted_weights are both on, but a study can have only one "
                "untrained denoiser. Fix: set one of them to false"
            )
        return self

    @property
    def untrained(self) -> UntrainedWeights | None:
        """Settings of the control with an untrained denoiser, permuted or random; None if off."""
        return self.permuted_weights or self.random_weights

    def enabled(self, condition: str) -> bool:
        """Return whether a condition is on in this study; the condition ``probe`` always is."""
        if condition == PROBE_CONDITION:
            return True
        return bool((self.__dict__ | (self.model_extra or {})).get(condition))


class BootstrapSettings(Section):
    """Number of resamples and confidence level of the bootstrap over held-out samples.

    Attributes:
        resamples: number of resamples; at least one must lie beyond each end of the interval, and
            more are drawn where few prompts need them.
        level: confidence level of the intervals.
    """

    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1), EXPONENT] = 0.95

    @model_validator(mode="after")
    def _resolved(self) -> BootstrapSettings:
        """Check that the number of resamples suffices for the confidence level."""
        # At least one resample must lie beyond each end of the interval.
        least = math.ceil(round(2 / (1 - self.level), 6))
        if self.resamples < least:
            raise ValueError(
                f"{self.resamples} resamples are too few for level {self.level}. Fix: raise "
                f"resamples to {least}, or lower level"
            )
        return self
