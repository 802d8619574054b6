"""A study: one experiment, written down.

A `Study` is a frozen pydantic model read from YAML.  Its hash covers everything that decides the
bytes of the result and nothing else: where it runs and on how many workers (`Execution`) is left
out, batch size and threads a worker are in, because floating point depends on both in its last
bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ldmprobe_core.errors import UserError

MAP_PROPERTIES = ("foreground", "depth", "shading")
"""Properties that are maps, probed per pixel; `class` is a label an image."""

LAYOUT_VERSION = 1
"""Part of every hash: raised when the same study would give other bytes or another layout."""


def _slug(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value):
        raise ValueError(
            f"{value!r:.80} must be 1 to 63 lowercase letters, digits and dashes, since it names "
            "a folder"
        )
    return value


Slug = Annotated[str, AfterValidator(_slug)]
PositiveInt = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Model(_Part):
    """The latent diffusion model: ``tabletop`` (embedded), a diffusers folder, or a hub id."""

    source: str = Field("tabletop", min_length=1)
    revision: str | None = None


class Prompts(_Part):
    """What is generated: the built-in tabletop captions, or prompts of your own.

    Attributes:
        set: the built-in set, used where `items` is None.
        items: prompts of your own.
        samples: number of images; `items` are gone through in turn.
        seed: the first image's seed, from which they count up image by image; it also decides
            which captions of the set are drawn, and how prompts are dealt into splits.
    """

    set: Literal["tabletop"] = "tabletop"
    items: tuple[str, ...] | None = Field(None, strict=False)
    samples: PositiveInt = 240
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _has_words(self) -> Prompts:
        if self.items is not None:
            if not self.items:
                raise ValueError("items is empty: give at least one prompt")
            for i, item in enumerate(self.items):
                if not item.strip():
                    raise ValueError(f"items[{i}] is an empty prompt: write one or remove it")
        return self


class Sampling(_Part):
    """How images are generated.

    Attributes:
        steps: sampler steps asked of the scheduler; it may make a few more calls.
        guidance: classifier-free guidance scale; 1 is none.
        batch: images generated together: the unit of writing and of resuming.
        threads: threads a worker computes with.
    """

    scheduler: Literal["ddim", "lms"] = "ddim"
    steps: PositiveInt = 15
    guidance: Annotated[float, Field(ge=1.0, strict=False)] = 3.0
    batch: PositiveInt = 16
    threads: PositiveInt = 2


class Capture(_Part):
    """Which activations are kept: globs over the denoiser's module names."""

    layers: tuple[str, ...] = Field(("*.attn1",), strict=False, min_length=1)


class Labels(_Part):
    """Who reads each property off an image, by name; None leaves the property out."""

    foreground: str | None = "tabletop"
    depth: str | None = "tabletop"
    shading: str | None = "tabletop"
    classes: str | None = Field("tabletop", alias="class")
    threshold: Annotated[float, Field(ge=0, lt=1, strict=False)] = 0.5
    """A pixel is foreground where the labeler's map is greater than this."""

    @property
    def maps(self) -> tuple[str, ...]:
        """The map properties that are probed, in their usual order."""
        return tuple(p for p in MAP_PROPERTIES if getattr(self, p))

    @model_validator(mode="after")
    def _something(self) -> Labels:
        if not self.maps:
            raise ValueError("foreground, depth and shading are all off: there is nothing to probe")
        return self


class Split(_Part):
    """Shares of the prompts that train probes, choose among them, and score them."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.45
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.40

    @model_validator(mode="after")
    def _whole(self) -> Split:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:g}: make it 1")
        return self


class Probes(_Part):
    """Which linear probes are trained in each cell.

    Attributes:
        kinds: ``ridge`` (all properties), ``logistic`` (foreground), ``adam`` (the paper's
            protocol, all properties; slow).
        penalties: candidate L2 penalties, in units of the layer's mean channel variance; the
            validation part chooses.
    """

    kinds: tuple[Literal["ridge", "logistic", "adam"], ...] = Field(
        ("ridge", "logistic"), strict=False, min_length=1
    )
    penalties: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), strict=False, min_length=1
    )
    split: Split = Split()

    @model_validator(mode="after")
    def _distinct(self) -> Probes:
        for name in ("kinds", "penalties"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {list(values)}: name each once")
        return self


class Controls(_Part):
    """The same fits where they should fail.  The position baseline is always computed.

    Attributes:
        shuffled: labels dealt to other training images.
        permuted: a denoiser whose every weight tensor is permuted, shown the same latents.
    """

    shuffled: bool = True
    permuted: bool = True


class Statistics(_Part):
    """Bootstrap over held-out samples: number of resamples and the interval's level."""

    resamples: Annotated[int, Field(ge=100)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class Execution(_Part):
    """Where a study runs; not part of its hash.

    The number of workers changes none of the result's bytes; another device, or another machine
    type, changes last bits.

    Attributes:
        runner: ``threads`` in this process, or ``dask`` workers.
        workers: how many; with an `address` the cluster decides.
        address: a running Dask scheduler; None starts local worker processes.
        device: ``auto`` takes CUDA, then MPS, then the CPU.
    """

    runner: Literal["threads", "dask"] = "threads"
    workers: PositiveInt = 2
    address: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class Study(_Part):
    """One experiment; see the module's docstring."""

    name: Slug = "study"
    model: Model = Model()
    prompts: Prompts = Prompts()
    sampling: Sampling = Sampling()
    capture: Capture = Capture()
    labels: Labels = Labels()
    probes: Probes = Probes()
    controls: Controls = Controls()
    statistics: Statistics = Statistics()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _served(self) -> Study:
        if self.probes.kinds == ("logistic",) and self.labels.maps != ("foreground",):
            raise ValueError(
                "probes.kinds has logistic alone, which reads foreground only: add ridge, or "
                "leave labels.depth and labels.shading out"
            )
        return self

    @model_validator(mode="after")
    def _enough_prompts(self) -> Study:
        distinct = self.prompts.samples
        if self.prompts.items is not None:
            distinct = len(set(self.prompts.items[:distinct]))
        if distinct < 3:
            raise ValueError(
                f"prompts.samples gives {distinct} distinct prompts, too few for a split by prompt "
                "into train, validation and test: at least 3 are needed"
            )
        return self

    @property
    def hash(self) -> str:
        """16 hex digits of the content that decides the result."""
        content = self.model_dump(mode="json", by_alias=True, exclude={"execution"})
        canonical = json.dumps([LAYOUT_VERSION, content], sort_keys=True, allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def run_name(self) -> str:
        """Folder of the run: the study's name and its hash."""
        return f"{self.name}-{self.hash[:10]}"

    @property
    def batches(self) -> list[range]:
        """Sample indices of every batch; the last may be shorter."""
        n, size = self.prompts.samples, self.sampling.batch
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    def to_json(self) -> str:
        """The whole study, defaults included."""
        return self.model_dump_json(by_alias=True, indent=2)


def load_study(source: str, overrides: list[str] | None = None) -> Study:
    """Read a study.

    Args:
        source: path of a YAML file, or the name of a ready study such as ``tabletop``.
        overrides: ``key=value`` with dotted keys, such as ``sampling.steps=20``; values are YAML.

    Raises:
        UserError: no such file, not YAML, or a key or value that a study does not have.
    """
    path = Path(source)
    if os.path.isfile(source):  # unlike Path.is_file it takes any string, a hostile one too
        data = path.read_bytes()
    else:
        ready = resources.files("studies") / f"{source}.yaml"
        if re.fullmatch(r"[\w-]{1,64}", source) is None or not ready.is_file():
            raise UserError(f"study {source!r:.80}: no such file, and no ready study of that name")
        data, path = ready.read_bytes(), Path(f"{source}.yaml")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: a study is a YAML file in UTF-8, and this is not") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(f"{path}{line}: this is not valid YAML") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a study is a mapping of keys to values, not a {type(content).__name__}"
        )
    for override in overrides or []:
        _set(content, override)
    return parse_study(content, str(path))


def parse_study(content: dict[str, Any], where: str = "study") -> Study:
    """Validate a mapping.

    Raises:
        UserError: one sentence naming the first wrong field and its value.
    """
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(error)}") from None


def _set(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r}: write it as key=value, such as sampling.steps=20")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: {text!r} is not a YAML value") from None
    *path, last = key.split(".")
    for name in path:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise UserError(f"--set {override!r}: {name} holds a value, not keys")
    content[last] = value


def _sentence(error: ValidationError) -> str:
    """The first problem as a sentence: field, value, remedy."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "study"
    if first["type"] == "extra_forbidden":
        return f"{field} is not a key of a study; {_known_keys(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{field}: {message}"
    value = repr(first["input"])
    value = value if len(value) <= 60 else value[:57] + "..."
    return f"{field} is {value}: {message[0].lower()}{message[1:]}"


def _known_keys(location: tuple[int | str, ...]) -> str:
    part: Any = Study
    for name in location[:-1]:
        fields = {(f.alias or key): f for key, f in part.model_fields.items()}
        part = fields[str(name)].annotation
    keys = ", ".join((f.alias or key) for key, f in part.model_fields.items())
    return f"{'.'.join(map(str, location[:-1])) or 'a study'} has: {keys}"
