"""A study: one experiment, written down.

A `Study` is a frozen pydantic model read from YAML.  Its hash covers everything that decides the
bytes of the result and nothing else: where it runs and on how many workers (`Execution`) is left
out, batch size and threads a worker are in, because floating point depends on both in its last
bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import (
    model_validator,
)

from ldmprobe_core.study.conditions import CONDITIONS, Condition
from ldmprobe_core.study.probe_kinds import MLP, probe_kind
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.sections import (
    BootstrapSettings,
    Capture,
    Controls,
    Execution,
    Images,
    Labels,
    Model,
    Probes,
    Prompts,
    Sampling,
    Section,
    Slug,
)

LAYOUT_VERSION = 5
"""Part of every hash: raised when the same study would give other bytes or another layout."""


def _texts(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a study's content, with the dotted name of its key."""
    if isinstance(content, str):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _texts(value, f"{name}.{key}".lstrip("."))
    elif isinstance(content, (list, tuple)):
        for i, value in enumerate(content):
            yield from _texts(value, f"{name}[{i}]")


class Study(Section):
    """One experiment; see the module's docstring."""

    name: Slug = "study"
    model: Model = Model()
    source: Literal["prompts", "images"] = "prompts"
    prompts: Prompts = Prompts()
    images: Images | None = None
    sampling: Sampling = Sampling()
    capture: Capture = Capture()
    labels: Labels = Labels()
    probes: Probes = Probes()
    controls: Controls = Controls()
    bootstrap: BootstrapSettings = BootstrapSettings()
    execution: Execution = Execution()

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, content: Any) -> Any:
        for name, text in _texts(content):
            if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(
                    f"{name} holds a character that neither files nor databases take (NUL, or "
                    "half of a surrogate pair): remove it"
                )
        return content

    @model_validator(mode="after")
    def _served(self) -> Study:
        linear = [probe_kind(kind) for kind in self.linear_kinds]
        unread = [
            prop
            for prop in self.labels.maps
            if not any(kind.supports(property_of(prop)) for kind in linear)
        ]
        if unread:
            keys = " and ".join(f"labels.{prop}" for prop in unread)
            raise ValueError(
                f"probes.kinds has {' and '.join(self.linear_kinds)} alone, which cannot read "
                f"{' and '.join(unread)}: add ridge, or leave {keys} out"
            )
        return self

    @model_validator(mode="after")
    def _from_sums(self) -> Study:
        if self.capture.keep != "statistics":
            return self
        beyond = [kind for kind in self.kinds if not probe_kind(kind).from_statistics]
        if beyond:
            chosen = beyond[0] in self.probes.kinds
            remedy = "probes.kinds to ridge" if chosen else "controls.mlp to false"
            raise ValueError(
                f"capture.keep is statistics, and sums cannot fit {beyond[0]} probes: set "
                f"{remedy}, or capture.keep to both"
            )
        if self.controls.shuffled_labels and self.sampling.batch == 1:
            raise ValueError(
                "sampling.batch is 1, and with capture.keep statistics labels are dealt to other "
                "images of a batch: make it at least 2, or set controls.shuffled_labels to false"
            )
        return self

    @model_validator(mode="after")
    def _guided(self) -> Study:
        if self.prompts.negative is not None and (self.sampling.guidance == 1 or self.images):
            raise ValueError(
                "prompts.negative is given, and without guidance nothing leads away from it: leave "
                "it out, or set sampling.guidance above 1"
            )
        return self

    @model_validator(mode="after")
    def _enough_prompts(self) -> Study:
        if (self.source == "images") != (self.images is not None):
            raise ValueError(
                f"source is {self.source}, and images is "
                f"{'missing: name their folder' if self.images is None else 'given: remove one'}"
            )
        distinct = self.count
        if self.images is None and self.prompts.items is not None:
            distinct = len(set(self.prompts.items[:distinct]))
        if distinct is not None and distinct < 3:
            field = "prompts.samples" if self.images is None else "images.samples"
            raise ValueError(
                f"{field} gives {distinct} distinct prompts, too few for a split by prompt "
                "into train, validation and test: at least 3 are needed"
            )
        return self

    @property
    def count(self) -> int | None:
        """Number of images; None before the files that hold them are read."""
        return self.prompts.count if self.images is None else self.images.samples

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind of probe that is scored: ``probes.kinds``, then the control ``mlp``."""
        control = self.controls.mlp and MLP.name not in self.probes.kinds
        return (*self.probes.kinds, *((MLP.name,) if control else ()))

    @property
    def linear_kinds(self) -> tuple[str, ...]:
        """Kinds whose weights are stored and among which the best probe is chosen."""
        return tuple(kind for kind in self.probes.kinds if probe_kind(kind).linear)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The axis ``condition`` of scores: the probe itself, then controls.

        The controls of every layout are on it even where they are off; `controls.enabled` tells.
        """
        return tuple(
            condition
            for name, condition in CONDITIONS.items()
            if condition.always_stored or self.controls.enabled(name)
        )

    def assignments(self, network: str) -> tuple[str, ...]:
        """Label assignments that a network's cells are probed under; true labels come first."""
        names = [
            condition.assignment
            for condition in self.conditions
            if condition.network == network and self.controls.enabled(condition.name)
        ]
        return tuple(dict.fromkeys(["true", *names]))

    @property
    def hash(self) -> str:
        """16 hex digits of the content that decides the result."""
        # Where a file lies decides nothing: its digest stands for it.
        elsewhere: Any = {"execution": True, "prompts": {"files"}, "images": {"folder"}}
        content = self.model_dump(mode="json", by_alias=True, exclude=elsewhere)
        canonical = json.dumps([LAYOUT_VERSION, content], sort_keys=True, allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def run_name(self) -> str:
        """Folder of the run: the study's name and its hash."""
        return f"{self.name}-{self.hash[:10]}"

    def batches(self, stored: int) -> list[range]:
        """Sample indices of every batch of the samples that are stored; the last may be shorter."""
        size = self.sampling.batch
        return [range(start, min(start + size, stored)) for start in range(0, stored, size)]

    def to_json(self) -> str:
        """The whole study, defaults included."""
        return self.model_dump_json(by_alias=True, indent=2)
