"""The sections of a study: model, prompts, sampling, capture, labels, probes, controls."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from ldmprobe_core.study.conditions import CONDITIONS, PROBE
from ldmprobe_core.study.probe_kinds import PROBE_KINDS
from ldmprobe_core.study.properties import CLASS, PROPERTIES, map_properties


def _slug(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value):
        raise ValueError(
            f"{value!r:.80} must be 1 to 63 lowercase letters, digits and dashes, since it names "
            "a folder"
        )
    return value


Slug = Annotated[str, AfterValidator(_slug)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base class of a study's sections: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Model(Section):
    """The latent diffusion model: ``tabletop`` (embedded), a diffusers folder, or a hub id.

    Attributes:
        revision: of a hub id: a branch, tag or commit.
        dtype: of the denoiser and the text encoders; the VAE always computes in float32.
        attention_slicing: less memory for attention, a little slower.
        cpu_offload: keep on the device only the part that computes; needs a GPU.
    """

    source: str = Field("tabletop", min_length=1)
    revision: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    attention_slicing: bool = False
    cpu_offload: bool = False


class Prompts(Section):
    """What is generated: a built-in set, prompts of your own, or files of them.

    Attributes:
        set: the built-in set, used where there are neither `items` nor `files`.
        items: prompts of your own.
        files: CSV files with columns prompt, seed and optionally split and class (docs/models.md);
            one path, or a path for each of the splits train and test.
        samples: number of images; None takes all of `items` or `files`, or 240 of a set.  `items`
            are gone through in turn.
        negative: what guidance leads away from, for every image.
        content_hash: of the files' contents, entered when they are read.
        seed: the first image's seed, from which they count up image by image; it also decides
            which captions of the set are drawn, and how prompts are dealt into splits.
    """

    set: Literal["tabletop", "objects"] = "tabletop"
    items: tuple[str, ...] | None = Field(None, strict=False)
    files: dict[Literal["all", "train", "test"], str] | None = None
    samples: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    negative: str | None = None
    content_hash: str | None = None

    @field_validator("files", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return {"all": value} if isinstance(value, str) else value

    @property
    def count(self) -> int | None:
        """Number of images; None before the files are read."""
        if self.samples is not None or self.files is not None:
            return self.samples
        return len(self.items) if self.items is not None else 240

    @model_validator(mode="after")
    def _has_words(self) -> Prompts:
        if self.items is not None and self.files is not None:
            raise ValueError("items and files are both given: keep one")
        if self.files is not None and set(self.files) not in ({"all"}, {"train", "test"}):
            raise ValueError(f"files has {', '.join(self.files)}: give one file, or train and test")
        if self.items is not None:
            if not self.items:
                raise ValueError("items is empty: give at least one prompt")
            for i, item in enumerate(self.items):
                if not item.strip():
                    raise ValueError(f"items[{i}] is an empty prompt: write one or remove it")
        return self


class Images(Section):
    """Pictures of your own, with the maps that lie beside them; nothing is generated.

    ``a.png`` has its maps in ``a.foreground.*``, ``a.depth.*``, ``a.shading.*`` (PNG, NPY, EXR).

    Attributes:
        folder: of the pictures.
        caption: what the denoiser is told of every picture.
        samples: number of images, the first by name; None takes all.
        seed: of the noise.
        content_hash: of the files' contents, entered when they are read.
    """

    folder: str
    caption: str = ""
    samples: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    content_hash: str | None = None


class Sampling(Section):
    """How images are generated.

    Attributes:
        scheduler: ``flow`` for models trained by flow matching (SD 3, Flux), else any other.
        steps: sampler steps asked of the scheduler; it may make a few more calls.
        guidance: classifier-free guidance scale; 1 is none.
        batch: images generated together: the unit of writing and of resuming.
        threads: threads a worker computes with; workers x threads should be the machine's cores.
    """

    scheduler: Literal["lms", "ddim", "pndm", "euler", "heun", "dpm++", "unipc", "flow"] = "lms"
    steps: PositiveInt = 15
    guidance: Annotated[float, Field(ge=1.0, strict=False)] = 7.5
    batch: PositiveInt = 16
    threads: PositiveInt = 1


class Capture(Section):
    """Which activations are kept, and what of them.

    Attributes:
        layers: globs over module names, or presets: self-attention, cross-attention, resnets,
            blocks, and vae (the decoder's middle attention, the paper's control).
        keep: ``activations``; ``statistics``, with which training samples leave nothing but sums,
            whose size does not grow with them, and only held-out samples are stored; or ``both``.
        accumulators: number of accumulators of statistics, and of workers that can share the work.
    """

    layers: tuple[str, ...] = Field(("self-attention",), strict=False, min_length=1)
    keep: Literal["activations", "statistics", "both"] = "activations"
    accumulators: PositiveInt = 4


class LabelerSpec(Section):
    """A labeler by name, with its weights: a folder, a file or a hub id.

    In YAML a name alone will do.
    """

    name: str
    weights: str | None = None
    revision: str | None = None


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_Reader = Annotated[LabelerSpec | None, BeforeValidator(_named)]
_TABLETOP = LabelerSpec(name="tabletop")


def _check_extra(section: type[Section], content: Any, known: Iterable[str]) -> Any:
    """Refuse keys that are neither fields nor registered names; drop extra keys set to null.

    A null extra key means the same as an absent one, so both give the study the same hash.
    """
    if not isinstance(content, dict):
        return content
    fields = [field.alias or name for name, field in section.model_fields.items()]
    for key in content:
        if key not in fields and key not in known:
            names = ", ".join([*fields, *(name for name in known if name not in fields)])
            raise ValueError(f"{key} is not a key of it; there is {names}")
    return {k: v for k, v in content.items() if k in fields or v is not None}


class Labels(Section):
    """Labelers by property; None leaves the property out.

    Every registered map property is a key beside those below; such a property is off by default.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Reader] = Field(init=False)

    foreground: _Reader = _TABLETOP
    depth: _Reader = _TABLETOP
    shading: _Reader = _TABLETOP
    classes: _Reader = Field(_TABLETOP, alias="class")
    threshold: Annotated[float, Field(ge=0, lt=1, strict=False)] = 0.5
    """A pixel is foreground where the labeler's map is greater than this."""

    def labeler(self, prop: str) -> LabelerSpec | None:
        """The labeler of a map property or of ``class``; None if the property is left out."""
        if prop == CLASS:
            return self.classes
        return (self.__dict__ | (self.model_extra or {})).get(prop)

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the map properties that are probed, in the order of their registry."""
        return tuple(prop for prop in map_properties() if self.labeler(prop) is not None)

    @model_validator(mode="before")
    @classmethod
    def _registered(cls, content: Any) -> Any:
        return _check_extra(cls, content, PROPERTIES)

    @model_validator(mode="after")
    def _something(self) -> Labels:
        if not self.maps:
            raise ValueError(
                f"{', '.join(map_properties()[:-1])} and {map_properties()[-1]} are all off: there "
                "is nothing to probe"
            )
        if self.classes is not None and self.classes.name == "maps":
            raise ValueError("class is 'maps', and a class has none: name a labeler, or null")
        return self


class Split(Section):
    """Shares of the prompts that train probes, choose among them, and score them.

    Attributes:
        heldout: hold out prompts of about this number of samples, divided as validation and
            test, and train on all others; None holds out shares.
    """

    train: Annotated[float, Field(gt=0, lt=1)] = 0.45
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.40
    heldout: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Split:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:g}: make it 1")
        return self


class Probes(Section):
    """Which linear probes are trained in each cell.

    Attributes:
        kinds: names of registered kinds: ``ridge`` (all properties), ``logistic`` (masks),
            ``adam`` (the paper's protocol, all properties; slow).  At least one is linear.
        penalties: candidate L2 penalties, in units of the layer's mean channel variance; the
            validation part chooses.
    """

    kinds: tuple[str, ...] = Field(("ridge", "logistic"), strict=False, min_length=1)
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
        for kind in self.kinds:
            if kind not in PROBE_KINDS:
                raise ValueError(f"kinds has {kind!r}: choose from {', '.join(PROBE_KINDS)}")
        if not any(PROBE_KINDS[kind].linear for kind in self.kinds):
            raise ValueError(f"kinds is {list(self.kinds)}, none of them linear: add ridge")
        return self


class Controls(Section):
    """The same fits where they should fail, or from less.  Position alone is always computed.

    Every registered condition is a key beside those below; such a control is off by default.

    Attributes:
        latents: probes on the denoiser's own input at each step, the noisy latents.
        mlp: a probe with one hidden layer in each cell (slow).
        shuffled_labels: labels dealt to other training images.
        permuted_weights: a denoiser whose every weight tensor is permuted, shown the same latents.
    """

    shuffled_labels: bool = True
    permuted_weights: bool = True
    latents: bool = True
    mlp: bool = False

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, bool] = Field(init=False)

    @model_validator(mode="before")
    @classmethod
    def _registered(cls, content: Any) -> Any:
        return _check_extra(cls, content, [name for name in CONDITIONS if name != PROBE])

    def enabled(self, condition: str) -> bool:
        """Whether cells are scored under a condition; the probe itself always is."""
        if condition == PROBE:
            return True
        return bool((self.__dict__ | (self.model_extra or {})).get(condition))


class BootstrapSettings(Section):
    """Bootstrap over held-out samples: number of resamples and the interval's level."""

    resamples: Annotated[int, Field(ge=100)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class Execution(Section):
    """Where a study runs; not part of its hash.

    The number of workers changes none of the result's bytes; another device, or another machine
    type, changes last bits.

    Attributes:
        runner: ``local``, threads of the flow's process; or ``dask``, worker processes.
        workers: how many; with an `address` the cluster decides.
        address: a running Dask scheduler.
        cluster: a YAML file of a dask-kubernetes DaskCluster, made for the run.  With neither,
            Dask workers are processes of this machine.
        gpus_per_worker: generation and labeling go to Dask workers that declare a GPU, and local
            ones get one each; 0 asks for none.
        device: ``auto`` takes CUDA, then MPS, then the CPU.
    """

    runner: Literal["local", "dask"] = "local"
    workers: PositiveInt = 2
    address: str | None = None
    cluster: str | None = None
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @model_validator(mode="after")
    def _of_dask(self) -> Execution:
        given = [name for name in ("address", "cluster", "gpus_per_worker") if getattr(self, name)]
        if given and self.runner == "local":
            raise ValueError(f"{given[0]} is given, and runner is local: set runner to dask")
        if self.address and self.cluster:
            raise ValueError("address and cluster are both given: keep one")
        return self

    @property
    def wanted_device(self) -> str:
        """A worker that takes a GPU's tasks computes on it, or says that it cannot."""
        return "cuda" if self.device == "auto" and self.gpus_per_worker else self.device

    @property
    def elsewhere(self) -> bool:
        """Other machines compute: what this one has says nothing of them."""
        return bool(self.address or self.cluster)
