"""Description of one experiment, which is called a study.

A `Study` is a frozen pydantic model that is read from YAML.  Its hash covers exactly the settings
that affect the bytes of the result.  Settings of the workers (`Execution`) are therefore left out,
but batch size and threads per worker are included, because they affect the last bits of floating
point results.

`sections.Section` refuses unknown keys and values of a wrong type, and `loading.sentence` turns
these errors into messages.  Rules that concern several sections are validators of `Study`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ldmprobe_core.errors import counted
from ldmprobe_core.study.conditions import CONDITIONS, Condition, LabelColumn
from ldmprobe_core.study.extensions.declarations import Declarations, declare
from ldmprobe_core.study.layers import CLEAN_PIXELS, LATENTS
from ldmprobe_core.study.probe_kinds import MLP, probe_kind
from ldmprobe_core.study.probe_sections import BootstrapSettings, Controls, Labels, Probes
from ldmprobe_core.study.properties import property_of, register_property, with_built_in
from ldmprobe_core.study.readers.model_record import EMBEDDED, read_model_record
from ldmprobe_core.study.readers.value_types import Slug, require_storable_text
from ldmprobe_core.study.sections import (
    PIPELINE,
    PIPELINE_PREFIX,
    Capture,
    Execution,
    Images,
    Model,
    Prompts,
    Sampling,
    Section,
    Trajectory,
)

_DEFAULTED = {"scheduler", "steps", "guidance"}

LAYOUT_VERSION = 8
"""Version that is part of every hash, and grows when equal studies no longer give equal bytes."""


def _texts(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the strings in a study's content, as pairs of dotted key and string.

    Raises:
        ValueError: a value is a set, whose order differs from process to process.
    """
    if isinstance(content, (set, frozenset)):
        raise ValueError(f"{name} is a set, which has no order. Fix: give a list")
    if isinstance(content, str):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _texts(value, f"{name}.{key}".lstrip("."))
    elif isinstance(content, (list, tuple)):
        for i, value in enumerate(content):
            yield from _texts(value, f"{name}[{i}]")


DEFINING = ("kind", "metrics", "map_format", "component")
"""Fields of a property's record on which the bytes of a run depend."""


class Study(Section):
    """Description of one experiment: model, prompts, sampling, layers, labels and probes.

    Attributes:
        name: first part of the name of the run's folder.
        properties: properties of the user, by name, with or without a labeler (docs/your-own.md).
        source: where images come from: ``prompts`` generates them, ``images`` takes the user's.
    """

    name: Slug = "study"
    model: Model = Model()
    properties: Declarations = Field(default_factory=dict)
    source: Literal["prompts", "images"] = "prompts"
    prompts: Prompts = Prompts()
    images: Images | None = None
    sampling: Sampling = Sampling()
    capture: Capture = Capture()
    trajectory: Trajectory = Trajectory()
    labels: Labels = Labels()
    probes: Probes = Probes()
    controls: Controls = Controls()
    bootstrap: BootstrapSettings = BootstrapSettings()
    execution: Execution = Execution()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_model(cls, content: Any) -> Any:
        """Fill in sampling keys that the study leaves out with the defaults of its model."""
        if not isinstance(content, dict):
            return content
        model, sampling = content.get("model", Model()), content.get("sampling", {})
        if isinstance(model, Model):
            model = model.model_dump()
        values = model if isinstance(model, dict) else {"source": None}
        source: Any = values.get("config") or values.get("source", EMBEDDED)
        revision = values.get("revision")
        if isinstance(sampling, Sampling):
            sampling = sampling.model_dump(exclude_unset=True)
        usable = isinstance(source, str) and source and isinstance(revision, str | None)
        if not usable or not isinstance(sampling, dict) or sampling.keys() >= _DEFAULTED:
            return content
        try:
            record = read_model_record(source, revision)
        except ValueError as problem_and_remedy:
            raise ValueError(f"model.source: {problem_and_remedy}") from None
        return {**content, "sampling": {**record.sampling, **sampling}}

    @model_validator(mode="before")
    @classmethod
    def _declared(cls, content: Any) -> Any:
        """Complete the declared properties and their labelers, with `declare`."""
        return declare(content) if isinstance(content, dict) else content

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, content: Any) -> Any:
        """Check that files and databases accept every text of the study."""
        for name, text in _texts(content):
            require_storable_text(name, text)
        return content

    @model_validator(mode="after")
    def _scheduler_of_a_pipeline(self) -> Study:
        """Check that the scheduler ``pipeline`` is used for pipeline objects, and only for them."""
        source, scheduler = self.model.source, self.sampling.scheduler
        if (scheduler == PIPELINE) != source.startswith(PIPELINE_PREFIX):
            raise ValueError(
                f"sampling.scheduler is {scheduler}, but model.source is {source!r:.60}: the "
                f"scheduler {PIPELINE} belongs to pipeline objects. Fix: name a scheduler and a "
                "model, or call lp.run_study(study, store, pipeline=pipe)"
            )
        return self

    @model_validator(mode="after")
    def _served(self) -> Study:
        """Check that every labeled property can be predicted by some linear kind of probe."""
        linear = [probe_kind(kind) for kind in self.linear_kinds]
        unread = [
            prop
            for prop in self.labels.maps
            if not any(kind.supports(property_of(prop)) for kind in linear)
        ]
        if unread:
            keys = " and ".join(f"labels.{prop}" for prop in unread)
            raise ValueError(
                f"probes.kinds has only {' and '.join(self.linear_kinds)}, which cannot predict "
                f"{' and '.join(unread)}. Fix: add ridge, or set {keys} to null"
            )
        return self

    @model_validator(mode="after")
    def _from_sums(self) -> Study:
        """Check that, if only statistics are kept, they suffice for all probes and controls."""
        if self.capture.keep != "statistics":
            return self
        beyond = [kind for kind in self.kinds if not probe_kind(kind).from_statistics]
        if beyond:
            chosen = beyond[0] in self.probes.kinds
            remedy = "probes.kinds to ridge" if chosen else "controls.mlp to false"
            raise ValueError(
                f"capture.keep is statistics, but {beyond[0]} probes need stored activations. Fix: "
                f"set {remedy}, or capture.keep to both"
            )
        if self.controls.shuffled_labels and self.sampling.batch < 3:
            raise ValueError(
                f"sampling.batch is {self.sampling.batch}, but with capture.keep statistics the "
                "shuffled-label control permutes the labels within each batch, which needs at "
                "least 3 images. Fix: set sampling.batch to 3 or more, or controls.shuffled_labels "
                "to false"
            )
        return self

    @model_validator(mode="after")
    def _guided(self) -> Study:
        """Check that a negative prompt has guidance, without which it has no effect."""
        if self.prompts.negative is not None and (self.sampling.guidance == 1 or self.images):
            raise ValueError(
                "prompts.negative is given, but it has no effect without guidance. Fix: leave "
                "prompts.negative out, or set sampling.guidance above 1"
            )
        return self

    @model_validator(mode="after")
    def _enough_prompts(self) -> Study:
        """Check that ``images`` agrees with ``source``, and that 3 prompts or more are distinct."""
        if (self.source == "images") != (self.images is not None):
            raise ValueError(
                f"source is {self.source}, and images is "
                f"{'missing' if self.images is None else 'given'}. Fix: "
                f"{'add images.folder' if self.images is None else 'remove images'}, or "
                "change source"
            )
        distinct = self.count
        if self.images is None and self.prompts.items is not None:
            distinct = len(set(self.prompts.items[:distinct]))
        if distinct is not None and distinct < 3:
            field, remedy = "images.samples", "give at least 3"
            if self.images is None:
                field = "prompts.samples"
                items = self.prompts.items
                if items is not None and len(set(items)) < 3:
                    field, remedy = "prompts.items", "give at least 3 different prompts"
            raise ValueError(
                f"{field} gives {counted(distinct, 'distinct prompt')}, too few for a "
                f"split by prompt into train, validation and test. Fix: {remedy}"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_empty_declarations(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Serialise the study; an empty ``properties`` is left out, as older releases lacked it."""
        content = handler(self)
        if not content.get("properties"):
            content.pop("properties", None)
        return content

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore a pickled study, and register its properties in this process."""
        super().__setstate__(state)
        for record in self.properties.values():
            register_property(record)

    @property
    def count(self) -> int | None:
        """Number of images; None if it is unknown because the input files are not read yet."""
        return self.prompts.count if self.images is None else self.images.samples

    @property
    def map_properties(self) -> tuple[str, ...]:
        """Names of the properties for which a user may give ground-truth maps, in stored order.

        They are the built-in properties and those that the study declares.  Other properties that
        this process knows are not among them.
        """
        return with_built_in(self.properties)

    @property
    def input_controls(self) -> tuple[str, ...]:
        """Names of the enabled controls that are probed like layers: latents and clean pixels."""
        stored = self.capture.keep != "statistics" and self.trajectory.training > 0
        decoded = self.controls.clean_pixels and stored
        return ((LATENTS,) if self.controls.latents else ()) + ((CLEAN_PIXELS,) if decoded else ())

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of probes that are scored: those in ``probes.kinds``, then ``mlp`` if enabled."""
        control = self.controls.mlp and MLP.name not in self.probes.kinds
        return (*self.probes.kinds, *((MLP.name,) if control else ()))

    @property
    def linear_kinds(self) -> tuple[str, ...]:
        """Names of the study's kinds of linear probes.

        Weights are stored for probes of these kinds, and the best probe is chosen among them.
        """
        return tuple(kind for kind in self.probes.kinds if probe_kind(kind).linear)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Conditions on the axis ``condition`` of stored scores: the probe itself, then controls.

        A condition with `always_stored` is on the axis even if the study has switched it off.
        """
        return tuple(
            condition
            for name, condition in CONDITIONS.items()
            if condition.always_stored or self.controls.enabled(name)
        )

    def assignments(self, network: str) -> tuple[str, ...]:
        """Return the names of the label assignments for probing a network; ``true`` comes first."""
        names = [
            condition.assignment
            for condition in self.conditions
            if condition.network == network and self.controls.enabled(condition.name)
        ]
        return tuple(dict.fromkeys(["true", *names]))

    def label_columns(self, network: str) -> tuple[LabelColumn, ...]:
        """Return the columns of labels to which a network's probes are fitted."""
        repeated = {c.assignment for c in self.conditions if c.repeated}
        return tuple(
            LabelColumn(assignment, prop, draw)
            for assignment in self.assignments(network)
            for draw in range(self.controls.permutations if assignment in repeated else 1)
            for prop in self.labels.maps
        )

    @property
    def hash(self) -> str:
        """Hash, 16 hex digits, of all settings that affect the bytes of the run."""
        # Workers' settings and the paths of input files do not affect the bytes of the run.  Input
        # files enter the hash by their content hash.
        elsewhere: Any = {"execution": True, "prompts": {"files"}, "images": {"folder"}}
        content = self.model_dump(mode="json", by_alias=True, exclude=elsewhere)
        # These keys were added in later releases.  Without a value they are left out, so that
        # hashes of older studies stay the same.
        if self.images is not None and not self.images.missing:
            del content["images"]["missing"]
        if self.model.config is None:
            del content["model"]["config"]
        if "properties" in content:
            # Titles, colours and defaults of interventions do not affect the bytes of the run, and
            # neither do declarations that have no labeler.
            content["properties"] = {
                name: {key: record[key] for key in DEFINING if key in record}
                for name, record in content["properties"].items()
                if name in (*self.labels.maps, *self.labels.numbers)
            }
            if not content["properties"]:
                del content["properties"]
        canonical = json.dumps([LAYOUT_VERSION, content], sort_keys=True, allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def run_name(self) -> str:
        """Name of the run's folder, made of the study's name and its hash."""
        return f"{self.name}-{self.hash[:10]}"

    def batches(self, stored: int) -> list[range]:
        """Divide the first ``stored`` samples into batches of indices; the last may be shorter."""
        size = self.sampling.batch
        return [range(start, min(start + size, stored)) for start in range(0, stored, size)]

    def to_json(self) -> str:
        """Convert the study to JSON, with the values of all keys, including defaults."""
        return self.model_dump_json(by_alias=True, indent=2)
