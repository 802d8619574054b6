"""Sections of a study on the model, its inputs, sampling, capture and execution.

`ldmprobe_core.study.probe_sections` has the others.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from ldmprobe_core.study.properties import PROPERTIES, map_properties
from ldmprobe_core.study.readers.value_types import (
    EXPONENT,
    MAX_SAMPLES,
    SampleCount,
    Section,
    Seed,
)

PIPELINE = "pipeline"
"""Value of ``sampling.scheduler`` for the scheduler of a pipeline object."""

PIPELINE_PREFIX = "pipeline:"
"""Prefix of ``model.source`` for a pipeline object; the digest of the pipeline follows."""

HALF = "float16"
"""Default data type of stored activations."""

StepNumber = Annotated[int, Field(ge=1, le=100_000)]


class Model(Section):
    """Latent diffusion model that is probed, and how it is loaded.

    Attributes:
        source: ``tabletop`` for the embedded model, path of a diffusers folder, or hub id.  In runs
            of a pipeline object it is ``pipeline:`` and the digest of the pipeline.
        revision: branch, tag or commit of a hub id.
        config: folder or hub id with the configs of the model, if `source` is a single file of
            weights (``.safetensors``).
        dtype: data type of the denoiser and the text encoders; the VAE always uses float32.
        attention_slicing: compute attention in slices, which is slower but needs less memory.
        cpu_offload: keep only the module in use on the GPU, and the others in main memory.
    """

    source: str = Field("tabletop", min_length=1)
    revision: str | None = None
    config: str | None = Field(None, min_length=1)
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
        """Convert a single path to a mapping with the key ``all``, which stands for all splits."""
        return {"all": value} if isinstance(value, str) else value

    @property
    def count(self) -> int | None:
        """Number of images; None if it is unknown because the files are not read yet."""
        if self.samples is not None or self.files is not None:
            return self.samples
        return len(self.items) if self.items is not None else 240

    @model_validator(mode="after")
    def _has_words(self) -> Prompts:
        """Check that prompts come from one source, and that no item is empty."""
        if self.items is not None and self.files is not None:
            raise ValueError("items and files are both given. Fix: keep one of these keys")
        if self.content_hash is not None and self.files is None:
            raise ValueError("content_hash is given without files. Fix: leave it out")
        if self.files is not None and set(self.files) not in ({"all"}, {"train", "test"}):
            raise ValueError(
                f"files has the keys {', '.join(self.files)}. Fix: give one path, or the keys "
                "train and test, each with a path"
            )
        if self.items is not None:
            if not self.items:
                raise ValueError("items is empty. Fix: give at least one prompt")
            for i, item in enumerate(self.items):
                if not item.strip():
                    raise ValueError(f"items[{i}] is an empty prompt. Fix: remove it")
        return self


class Images(Section):
    """Source images of the user, with optional ground-truth maps, used instead of generated images.

    The maps of ``a.png`` are files beside it, named ``a.foreground.*``, ``a.depth.*`` and
    ``a.shading.*`` (PNG, TIFF, NPY or EXR).

    Attributes:
        folder: folder that holds the source images.
        caption: prompt that is given to the denoiser with every image.
        samples: number of images to take, in the order of their names; None takes all.
        seed: seed of the first image's noise, to which each further image adds 1.
        missing: by property, the value that marks unmeasured pixels in its maps, such as
            ``{depth: 0}``; NaN always marks them too, and so does the GDAL_NODATA value of a TIFF
            file.  Fits and scores leave these pixels out.
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
        """Check that every key of ``missing`` is a registered property with maps."""
        if not isinstance(value, dict):
            raise ValueError(
                f"{value!r:.60} is not a mapping. Fix: give a value by property, as in {{depth: 0}}"
            )
        for prop in value:
            if prop not in map_properties():
                problem = "has no maps" if prop in PROPERTIES else "is not a property"
                raise ValueError(f"{prop} {problem}. Fix: use one of {', '.join(map_properties())}")
        return value


class Sampling(Section):
    """Settings of the sampler.

    The record of a model (`ldmprobe_core.study.readers.model_record`) may replace the defaults of
    scheduler, steps and guidance.

    Attributes:
        scheduler: ``flow`` for models trained by flow matching (SD 3, Flux), and any other name
            for other models; see `ldmprobe_core.models.schedulers`.  In runs of a pipeline object
            it is ``pipeline``, the pipeline's own.
        steps: number of sampler steps; some schedulers call the denoiser a few times more.
        guidance: scale of classifier-free guidance; 1 switches it off.
        batch: number of images that are generated together and stored as one unit of work.
        threads: CPU threads per worker; workers x threads should equal the machine's cores.
    """

    scheduler: Literal[
        "lms", "ddim", "pndm", "euler", "heun", "dpm++", "unipc", "flow",
        "euler-ancestral", "lcm", "tcd", "pipeline",
    ] = "lms"  # fmt: skip
    steps: Annotated[int, Field(ge=1, le=10_000)] = 15
    guidance: Annotated[float, Field(ge=1, le=1000), EXPONENT] = 7.5
    batch: Annotated[int, Field(ge=1, le=10_000)] = 16
    threads: Annotated[int, Field(ge=1, le=1024)] = 1


class Pool(Section):
    """Averaging of large token maps over square blocks of tokens, before they are stored.

    Attributes:
        above: layers with more tokens than this, down or across, are averaged.
        by: number of tokens down and across a block.
    """

    above: Annotated[int, Field(ge=1, le=4096)] = 32
    by: Annotated[int, Field(ge=2, le=64)] = 2


class Capture(Section):
    """Layers whose activations are captured, and the form in which they are stored.

    Attributes:
        layers: glob patterns for module names, or presets: self-attention, cross-attention,
            resnets, blocks, and vae (middle attention of the VAE's decoder, the paper's control).
            A suffix such as ``@query`` or ``@head3`` selects a point inside attention layers.
        keep: ``activations`` of all samples; ``statistics``, which stores only sums for training
            samples, whose size is independent of their number; or ``both``.
        accumulators: number of partial sums, and so of workers that can compute them in parallel.
        dtype: data type in which activations, the latents and the pixels of the predicted clean
            image are stored and probed.  float32 takes twice the bytes of float16, and holds
            values above 65,504.
        pool: size from which token maps are averaged over blocks of tokens; None stores every
            token.
    """

    layers: tuple[str, ...] = Field(("self-attention",), strict=False, min_length=1)
    keep: Literal["activations", "statistics", "both"] = "activations"
    accumulators: Annotated[int, Field(ge=1, le=10_000)] = 4
    # These keys were added in a later release, and their defaults are left out, so that the hashes
    # of older studies stay the same.
    dtype: Literal["float16", "float32"] = Field("float16", exclude_if=lambda name: name == HALF)
    pool: Pool | None = Field(None, exclude_if=lambda value: value is None)

    def block_side(self, height: int, width: int) -> int:
        """Return the side, in tokens, of the blocks over which activations are averaged."""
        return self.pool.by if self.pool and max(height, width) > self.pool.above else 1

    @property
    def value_bytes(self) -> int:
        """Bytes of one stored activation value."""
        return 2 if self.dtype == HALF else 4

    @field_validator("layers")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Check that no layer is named twice."""
        if len(set(value)) < len(value):
            raise ValueError(f"{list(value)} has a value twice. Fix: name each value once")
        return value


class Trajectory(Section):
    """Samples and steps whose step images are decoded, labeled and stored.

    The step images are the decoded latents after a step, and the decoded clean latents that the
    denoiser predicts at it.  Decoding them takes longer than denoising, so only the samples that
    are scored have them, and a few samples to which controls are fitted.

    Attributes:
        samples: number of samples, drawn at random from the part `of`; ``all`` takes the part.
        of: part of the samples that are scored, ``test`` or ``heldout`` (validation and test).
        training: number of training samples with step images, drawn at random.  Labelers are
            recalibrated on them, and the probes of ``controls.clean_pixels`` are fitted to them and
            to the same share of the validation samples.  0 leaves both out.
        steps: sampler steps (from 1) whose images are decoded, in ascending order with the last
            step; ``all`` decodes every step.
    """

    samples: SampleCount | Literal["all"] = 64
    of: Literal["test", "heldout"] = "test"
    training: Annotated[int, Field(ge=0, le=MAX_SAMPLES)] = 32
    steps: Literal["all"] | Annotated[tuple[StepNumber, ...], Field(strict=False)] = "all"

    @model_validator(mode="after")
    def _ascending(self) -> Trajectory:
        """Check that the steps are distinct and ascending."""
        if self.steps != "all" and list(self.steps) != sorted(set(self.steps)):
            raise ValueError(
                f"steps is {list(self.steps)}. Fix: name each step once, in ascending order"
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
        device: device to compute on.  With ``auto`` each worker takes CUDA if available, else MPS,
            else the CPU; with `gpus_per_worker` 1 each must have CUDA.
    """

    runner: Literal["local", "dask"] = "local"
    workers: Annotated[int, Field(ge=1, le=1024)] = 2
    address: str | None = None
    cluster: str | None = None
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @model_validator(mode="after")
    def _of_dask(self) -> Execution:
        """Reject Dask's keys with the local runner, and ``address`` together with ``cluster``."""
        given = [name for name in ("address", "cluster", "gpus_per_worker") if getattr(self, name)]
        if given and self.runner == "local":
            raise ValueError(
                f"{given[0]} is a key of the runner dask, but runner is local. Fix: set runner to "
                f"dask, or remove {given[0]}"
            )
        if self.address and self.cluster:
            raise ValueError("address and cluster are both given. Fix: keep one of these keys")
        return self

    @property
    def wanted_device(self) -> str:
        """Requested device: ``device``, or ``cuda`` if it is ``auto`` and workers have GPUs."""
        return "cuda" if self.device == "auto" and self.gpus_per_worker else self.device

    @property
    def elsewhere(self) -> bool:
        """Flag that is True if workers may be on other machines, whose devices are unknown here."""
        return bool(self.address or self.cluster)
