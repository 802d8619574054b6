"""The sections of a study: model, prompts, sampling, capture, labels, probes, controls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from ldmprobe_core.study.conditions import CONDITIONS, PROBE_CONDITION
from ldmprobe_core.study.probe_kinds import PROBE_KINDS
from ldmprobe_core.study.properties import CLASS, PROPERTIES, map_properties
from ldmprobe_core.study.readers.value_types import EXPONENT, MAX_SAMPLES, SampleCount, Seed


class Section(BaseModel):
    """Base class of a study's sections, which are frozen, strict and refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Model(Section):
    """Latent diffusion model that is probed, and how it is loaded.

    Attributes:
        source: ``tabletop`` for the embedded model, path of a diffusers folder, or hub id.
        revision: branch, tag or commit of a hub id.
        dtype: data type of the denoiser and the text encoders; the VAE always uses float32.
        attention_slicing: compute attention in slices, which is slower but needs less memory.
        cpu_offload: keep only the module in use on the GPU, and the others in main memory.
    """

    source: str = Field("tabletop", min_length=1)
    revision: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    attention_slicing: bool = False
    cpu_offload: bool = False


class Prompts(Section):
    """Prompts of the images to generate, from a built-in set, a list, or files.

    Attributes:
        set: name of a built-in set, used if neither `items` nor `files` is given.
        items: list of prompts.
        files: CSV files with columns prompt, seed and optionally split and class (docs/models.md);
            either one path, or a path for each of the splits train and test.
        samples: number of images; None takes all of `items` or `files`, or 240 of a set.  If there
            are fewer `items` than samples, they are repeated.
        negative: negative prompt of classifier-free guidance, used for every image.
        content_hash: hash of the files' contents, filled in when they are read.
        seed: seed of the first image, to which each further image adds 1.  It also seeds the choice
            of prompts from the set, and the assignment of prompts to splits.
    """

    set: Literal["tabletop", "objects"] = "tabletop"
    items: tuple[str, ...] | None = Field(None, strict=False)
    files: dict[Literal["all", "train", "test"], str] | None = None
    samples: SampleCount | None = None
    seed: Seed = 0
    negative: str | None = None
    content_hash: str | None = None

    @field_validator("files", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return {"all": value} if isinstance(value, str) else value

    @property
    def count(self) -> int | None:
        """Number of images; None if it is unknown because the files are not read yet."""
        if self.samples is not None or self.files is not None:
            return self.samples
        return len(self.items) if self.items is not None else 240

    @model_validator(mode="after")
    def _has_words(self) -> Prompts:
        if self.items is not None and self.files is not None:
            raise ValueError("items and files are both given. Fix: keep one")
        if self.content_hash is not None and self.files is None:
            raise ValueError("content_hash is given without files. Fix: leave it out")
        if self.files is not None and set(self.files) not in ({"all"}, {"train", "test"}):
            raise ValueError(
                f"files has {', '.join(self.files)}. Fix: give one file, or train and test"
            )
        if self.items is not None:
            if not self.items:
                raise ValueError("items is empty. Fix: give at least one prompt")
            for i, item in enumerate(self.items):
                if not item.strip():
                    raise ValueError(f"items[{i}] is an empty prompt. Fix: write one, or remove it")
        return self


class Images(Section):
    """Source images of the user, with optional exact maps, used instead of generated images.

    The maps of ``a.png`` are files beside it, named ``a.foreground.*``, ``a.depth.*`` and
    ``a.shading.*`` (PNG, TIFF, NPY or EXR).

    Attributes:
        folder: folder that holds the source images.
        caption: prompt that is given to the denoiser with every image.
        samples: number of images to take, in the order of their names; None takes all.
        seed: seed of the first image's noise, to which each further image adds 1.
        missing: by property, the value that marks unmeasured pixels in its maps, such as
            ``{depth: 0}``; NaN always marks them too.  Fits and scores leave these pixels out.
        content_hash: hash of the files' contents, filled in when they are read.
    """

    folder: str
    caption: str = ""
    samples: SampleCount | None = None
    seed: Seed = 0
    missing: dict[str, Annotated[float, EXPONENT]] = Field(default_factory=dict)
    content_hash: str | None = None

    @field_validator("missing", mode="before")
    @classmethod
    def _of_properties(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r:.60} is of no property. Fix: name it, as in {{depth: 0}}")
        for prop in value:
            if prop not in PROPERTIES:
                raise ValueError(
                    f"{prop} is not a property. Fix: use one of {', '.join(PROPERTIES)}"
                )
        return value


class Sampling(Section):
    """Settings of the sampler.

    The record of a model (`ldmprobe_core.study.model_record`) may replace the defaults of
    scheduler, steps and guidance.

    Attributes:
        scheduler: ``flow`` for models trained by flow matching (SD 3, Flux), and any other name
            for other models; see `ldmprobe_core.models.schedulers`.
        steps: number of sampler steps; some schedulers call the denoiser a few times more.
        guidance: scale of classifier-free guidance; 1 switches it off.
        batch: number of images that are generated together and stored as one unit of work.
        threads: CPU threads per worker; workers x threads should equal the machine's cores.
    """

    scheduler: Literal["lms", "ddim", "pndm", "euler", "heun", "dpm++", "unipc", "flow"] = "lms"
    steps: Annotated[int, Field(ge=1, le=10_000)] = 15
    guidance: Annotated[float, Field(ge=1, le=1000), EXPONENT] = 7.5
    batch: Annotated[int, Field(ge=1, le=10_000)] = 16
    threads: Annotated[int, Field(ge=1, le=1024)] = 1


class Capture(Section):
    """Layers whose activations are captured, and the form in which they are stored.

    Attributes:
        layers: glob patterns for module names, or presets: self-attention, cross-attention,
            resnets, blocks, and vae (middle attention of the VAE's decoder, the paper's control).
        keep: ``activations`` of all samples; ``statistics``, which stores only sums for training
            samples, whose size is independent of their number; or ``both``.
        accumulators: number of partial sums, and so of workers that can compute them in parallel.
    """

    layers: tuple[str, ...] = Field(("self-attention",), strict=False, min_length=1)
    keep: Literal["activations", "statistics", "both"] = "activations"
    accumulators: Annotated[int, Field(ge=1, le=10_000)] = 4


class LabelerSpec(Section):
    """Name of a labeler, and its weights: a folder, a file or a hub id.

    In YAML, a labeler may be given by its name alone instead of a mapping.
    """

    name: str
    weights: str | None = None
    revision: str | None = None


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_Reader = Annotated[LabelerSpec | None, BeforeValidator(_named)]
_TABLETOP = LabelerSpec(name="tabletop")


def _check_extra(section: type[Section], content: Any, known: Iterable[str]) -> Any:
    """Refuse keys that are neither fields nor registered names; drop registered keys set to null.

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

    Every other registered property is also a key, with None as its default.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Reader] = Field(init=False)

    foreground: _Reader = _TABLETOP
    depth: _Reader = _TABLETOP
    shading: _Reader = _TABLETOP
    classes: _Reader = Field(_TABLETOP, alias="class")
    threshold: Annotated[float, Field(ge=0, lt=1), EXPONENT] = 0.5
    """Threshold for a labeler's foreground map, above which a pixel is foreground."""

    def labeler(self, prop: str) -> LabelerSpec | None:
        """Labeler of a map property or of ``class``; None if the property is left out."""
        if prop == CLASS:
            return self.classes
        return (self.__dict__ | (self.model_extra or {})).get(prop)

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the properties that are probed, in the order of registration."""
        return tuple(prop for prop in map_properties() if self.labeler(prop) is not None)

    @model_validator(mode="before")
    @classmethod
    def _registered(cls, content: Any) -> Any:
        return _check_extra(cls, content, PROPERTIES)

    @model_validator(mode="after")
    def _something(self) -> Labels:
        if not self.maps:
            raise ValueError(
                f"{', '.join(map_properties()[:-1])} and {map_properties()[-1]} are all off. Fix: "
                "name a labeler for at least one"
            )
        if self.classes is not None and self.classes.name == "maps":
            raise ValueError("class is 'maps', but classes have none. Fix: name a labeler or null")
        return self


class Split(Section):
    """Shares of the prompts for training, choosing and scoring probes; they add up to 1.

    Attributes:
        heldout: approximate number of samples to hold out; ``validation`` and ``test`` give the
            proportion in which they are divided.  None divides all samples by the three shares.
    """

    train: Annotated[float, Field(gt=0, lt=1), EXPONENT] = 0.45
    validation: Annotated[float, Field(gt=0, lt=1), EXPONENT] = 0.15
    test: Annotated[float, Field(gt=0, lt=1), EXPONENT] = 0.40
    heldout: Annotated[int, Field(ge=2, le=MAX_SAMPLES)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Split:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:g}. Fix: make it 1")
        return self


class Probes(Section):
    """Probes that are trained in each cell.

    Attributes:
        kinds: names of registered kinds, at least one of them linear: ``ridge`` (all properties),
            ``logistic`` (masks), ``adam`` (the paper's protocol for all properties, slow).
        penalties: L2 penalties to choose from by the score on the validation split, in units of
            the layer's mean channel variance.
    """

    kinds: tuple[str, ...] = Field(("ridge", "logistic"), strict=False, min_length=1)
    penalties: tuple[Annotated[float, Field(ge=1e-12, le=1e12), EXPONENT], ...] = Field(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), strict=False, min_length=1
    )
    split: Split = Split()

    @model_validator(mode="after")
    def _distinct(self) -> Probes:
        for name in ("kinds", "penalties"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {list(values)}. Fix: name each once")
        for kind in self.kinds:
            if kind not in PROBE_KINDS:
                raise ValueError(f"kinds has {kind!r}. Fix: choose from {', '.join(PROBE_KINDS)}")
        if not any(PROBE_KINDS[kind].linear for kind in self.kinds):
            raise ValueError(f"kinds is {list(self.kinds)}, none of them linear. Fix: add ridge")
        return self


class Controls(Section):
    """Switches of the controls; the control that predicts from position alone is always on.

    Every other registered condition is also a key, and off by default.

    Attributes:
        latents: probe the noisy latents, the denoiser's input, at each step.
        mlp: fit a probe with one hidden layer in each cell, which is slow.
        shuffled_labels: train probes on the labels of other training images.
        permuted_weights: probe a denoiser with permuted weight tensors, on the same latents.
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
        return _check_extra(cls, content, [name for name in CONDITIONS if name != PROBE_CONDITION])

    def enabled(self, condition: str) -> bool:
        """Whether the study scores cells under a condition; always True for the probe itself."""
        if condition == PROBE_CONDITION:
            return True
        return bool((self.__dict__ | (self.model_extra or {})).get(condition))


class BootstrapSettings(Section):
    """Number of resamples and confidence level of the bootstrap over held-out samples."""

    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1), EXPONENT] = 0.95

    @model_validator(mode="after")
    def _resolved(self) -> BootstrapSettings:
        # An interval needs at least one resample beyond each of its ends.
        least = math.ceil(round(2 / (1 - self.level), 6))
        if self.resamples < least:
            raise ValueError(
                f"{self.resamples} resamples are too few for level {self.level}. Fix: raise "
                f"resamples to {least}, or lower level"
            )
        return self


class Execution(Section):
    """Settings of the workers that carry out a study, which are not part of its hash.

    The number of workers does not affect the bytes of the result, but the type of device or machine
    may change the last bits.

    Attributes:
        runner: ``local`` for threads in the flow's process, ``dask`` for worker processes.
        workers: number of workers; ignored if `address` is given.
        address: address of a running Dask scheduler.  Without `address` and `cluster`, Dask workers
            are processes on this machine.
        cluster: YAML file of a dask-kubernetes DaskCluster that is created for the run.
        gpus_per_worker: 1 runs generation and labeling on Dask workers that declare a GPU, and
            gives each worker on this machine one GPU; 0 uses no GPUs.
        device: device to compute on; ``auto`` takes CUDA if available, else MPS, else the CPU.
    """

    runner: Literal["local", "dask"] = "local"
    workers: Annotated[int, Field(ge=1, le=1024)] = 2
    address: str | None = None
    cluster: str | None = None
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @model_validator(mode="after")
    def _of_dask(self) -> Execution:
        given = [name for name in ("address", "cluster", "gpus_per_worker") if getattr(self, name)]
        if given and self.runner == "local":
            raise ValueError(f"{given[0]} is given, and runner is local. Fix: set runner to dask")
        if self.address and self.cluster:
            raise ValueError("address and cluster are both given. Fix: keep one")
        return self

    @property
    def wanted_device(self) -> str:
        """Device to ask for: ``device``, or ``cuda`` if that is ``auto`` and workers have GPUs."""
        return "cuda" if self.device == "auto" and self.gpus_per_worker else self.device

    @property
    def elsewhere(self) -> bool:
        """Whether workers may be on other machines, whose devices cannot be checked here."""
        return bool(self.address or self.cluster)
