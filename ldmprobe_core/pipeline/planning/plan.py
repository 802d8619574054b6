"""Plan of a study: checked settings, input files, samples, layer shapes and expected sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from ldmprobe_core.errors import UserError, counted
from ldmprobe_core.labelers.registry import EXACT_MAPS, check_labeler, labelers_of, require_known
from ldmprobe_core.models.architectures.settings import check_settings
from ldmprobe_core.models.devices import check_device
from ldmprobe_core.models.layers import (
    capturable_modules,
    layer_shapes,
    match_layers,
    text_channels,
)
from ldmprobe_core.models.sources.base import ModelSource
from ldmprobe_core.models.sources.lookup import source_of
from ldmprobe_core.models.timesteps import timesteps
from ldmprobe_core.pipeline.planning.control_notes import few_training_notes, permutation_notes
from ldmprobe_core.pipeline.planning.declaration_checks import check_declarations
from ldmprobe_core.pipeline.planning.default_notes import default_notes
from ldmprobe_core.pipeline.planning.memory import WorkerMemory
from ldmprobe_core.pipeline.planning.prompt_checks import (
    check_samples,
    invisible_notes,
    long_text_notes,
    unknown_word_notes,
)
from ldmprobe_core.pipeline.planning.sizes import (
    StoredSamples,
    pooled_shape,
    stored_bytes,
    stored_samples,
    sum_bytes,
)
from ldmprobe_core.study.batching import BUFFERS, accumulation_units
from ldmprobe_core.study.layers import (
    CLEAN_PIXELS,
    INPUT_CONTROLS,
    LATENTS,
    POINT,
    WORDS,
    LayerShape,
)
from ldmprobe_core.study.readers.folder_checks import check_folder
from ldmprobe_core.study.readers.image_folder import exact_map_properties, image_names
from ldmprobe_core.study.readers.model_record import read_model_record
from ldmprobe_core.study.readers.prompt_files import encoding_notes
from ldmprobe_core.study.samples import Sample, make_samples, n_stored_samples, resolve_inputs
from ldmprobe_core.study.schema import Study


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Plan of a study: its samples, layer shapes, sizes, notes, and files that are missing.

    No weights are loaded.

    Attributes:
        study: the study, with the content of its input files and their hash if the files are on
            this machine.
        samples: all samples of the study, in order; empty if its input files are missing.
        folder: folder of the model's configs; None for a pipeline object.
        size: height and width of the images in pixels.
        shapes: layer name to the shape of its activations, including the latents if they are a
            control.
        steps: the scheduler's timestep of each sampler step.
        count: number of images.
        n_stored: number of images that are stored with their activations; the others contribute
            to statistics only.
        stored: numbers of samples with activations of the permuted denoiser and with step images.
        bytes_of: expected bytes in the store before compression, by kind of array.
        worker: estimate of the memory of a worker that generates and labels images.
        exact_properties: properties for which every source image has a ground-truth map.
        labelers: property to the fingerprint of its labeler's weights.
        text_channels: number of channels of prompt embeddings; 0 for models without prompts.
        missing: error messages about files, packages or devices that this machine lacks.
        notes: warnings that do not prevent a run, such as prompts that are cut off.
    """

    study: Study
    samples: tuple[Sample, ...]
    folder: Path | None
    size: tuple[int, int]
    shapes: dict[str, LayerShape]
    steps: list[float]
    count: int
    n_stored: int
    stored: StoredSamples
    bytes_of: dict[str, int]
    worker: WorkerMemory
    exact_properties: tuple[str, ...]
    labelers: dict[str, str]
    text_channels: int
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context manager in which `plan_of` returns this plan, so that a study is planned once.

        This applies to the current thread and to asyncio tasks that it starts.  After the
        ``with`` block, a new plan is made, which reads the user's files again.
        """
        token = _in_use.set(self)
        try:
            yield
        finally:
            _in_use.reset(token)

    def __str__(self) -> str:
        """Summarise the plan in a few lines: samples, layers, sizes, notes and missing files."""
        stored = f", {self.n_stored} of them stored" if self.n_stored < self.count else ""
        lines = [
            f"{self.study.name}: {counted(self.count, 'sample')}{stored}, {self.extent}",
            *(f"  {name}: {s.y} x {s.x} x {s.channels}" for name, s in self.shapes.items()),
            f"{self.bytes / 1e9:.2f} GB before compression; a worker needs about "
            f"{sum(self.memory.values()) / 1e9:.2f} GB of memory",
            *(f"note: {sentence}" for sentence in self.notes),
            *(f"missing: {sentence}" for sentence in self.missing),
        ]
        return "\n".join(lines)

    @cached_property
    def memory(self) -> dict[str, int]:
        """Expected peak memory in bytes of a worker that generates and labels images, by use."""
        return self.worker.of_batch(self.largest_batch)

    @property
    def largest_batch(self) -> int:
        """Largest number of images that a worker generates at once."""
        batches = self.study.batches(self.n_stored)
        if self.n_stored < self.count:
            units = accumulation_units(self.study, self.n_stored, self.count)
            batches += [batch for part in units for unit in part for batch in unit]
        return max(map(len, batches))

    @property
    def bytes(self) -> int:
        """Expected total bytes in the store, before compression."""
        return sum(self.bytes_of.values())

    @property
    def extent(self) -> str:
        """Numbers of steps, layers and cells, such as ``8 steps, 1 layer, 8 cells``."""
        numbers = {"step": len(self.steps), "layer": len(self.layers), "cell": self.cells}
        return ", ".join(counted(number, noun) for noun, number in numbers.items())

    @property
    def cells(self) -> int:
        """Number of pairs of a step and a captured layer."""
        return len(self.steps) * len(self.layers)

    @property
    def layers(self) -> list[str]:
        """Names of the captured layers, in the order in which the networks call them."""
        return [name for name in self.shapes if name not in INPUT_CONTROLS]

    def require_complete(self) -> None:
        """Check that this machine has every file, package and device that the study needs.

        Raises:
            UserError: a file, package or device is missing; the message is the first in `missing`.
        """
        if self.missing:
            raise UserError(self.missing[0])


_in_use: ContextVar[StudyPlan | None] = ContextVar("ldmprobe_plan", default=None)


def plan_of(study: Study) -> StudyPlan:
    """Return the plan that `StudyPlan.in_use` provides for this study, or else a new plan.

    Raises:
        UserError: the study has a mistake.
    """
    plan = _in_use.get()
    return plan if plan is not None and plan.study == study else plan_study(study)


def plan_study(study: Study) -> StudyPlan:
    """Plan a study: read its input files, check its settings, and estimate its size.

    No weights are loaded.

    Raises:
        UserError: the study has a mistake, such as a layer or a labeler that does not exist.  Files
            that this machine lacks are listed in the plan's `missing` instead.
    """
    gaps = _Gaps()
    if not study.execution.elsewhere:
        gaps.attempt(lambda: check_device(study))
    source = source_of(study.model)
    architecture = source.architecture
    gaps.attempt(source.require_weights)
    source.check()
    notes = [*default_notes(study), *check_settings(architecture, study), *permutation_notes(study)]
    denoiser, vae = source.networks()
    shapes = _captured_shapes(study, source, denoiser, vae)
    steps = timesteps(architecture, study)
    labelers = {}
    check_declarations(study)
    for prop, spec in labelers_of(study).items():
        require_known(prop, spec)
        labelers[prop] = gaps.attempt(partial(check_labeler, prop, spec))
    resolved: Study | None = gaps.attempt(lambda: resolve_inputs(study))
    count = (resolved or study).count
    if count is None:
        # An unreadable input file leaves the number of images unknown, so no plan is possible.
        raise UserError(gaps.sentences[-1])
    samples = make_samples(resolved) if resolved else []
    if samples:
        notes += [*few_training_notes(study, samples), *_prompt_notes(study, samples, source)]
    exact_properties = _exact_properties(resolved or study, gaps.sentences)
    if resolved:
        notes += _input_file_notes(resolved, architecture.size)
    n_stored = n_stored_samples(samples, resolved) if resolved else count
    sums = sum_bytes(study, shapes, len(steps))
    stored = stored_samples(resolved or study, samples, n_stored, len(steps))
    bytes_of = stored_bytes(study, shapes, architecture.size, len(steps), stored)
    if sums:
        bytes_of["statistics"] = BUFFERS * min(study.capture.accumulators, count) * sums
    return StudyPlan(
        study=resolved or study,
        samples=tuple(samples),
        folder=source.folder,
        size=architecture.size,
        shapes=shapes,
        steps=steps,
        count=count,
        n_stored=n_stored,
        stored=stored,
        bytes_of=bytes_of,
        worker=WorkerMemory(study, source, (denoiser, vae), shapes, len(steps), stored, sums),
        exact_properties=exact_properties,
        labelers=labelers,
        text_channels=text_channels(architecture),
        missing=tuple(gaps.sentences),
        notes=tuple(notes),
    )


class _Gaps:
    """Collector of error messages about files, packages and devices that are missing."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def attempt(self, check: Callable[[], Any]) -> Any:
        """Run a check and return its result; if it raises `UserError`, record its message."""
        try:
            return check()
        except UserError as error:
            self.sentences.append(str(error))
            return None


def _captured_shapes(
    study: Study, source: ModelSource, denoiser: nn.Module, vae: nn.Module
) -> dict[str, LayerShape]:
    """Find the shapes of all probe inputs: captured layers, and latents if they are a control.

    Raises:
        UserError: a layer does not exist, or the image's height or width is not a multiple of the
            number of its tokens.
    """
    architecture = source.architecture
    names = list(capturable_modules(denoiser, vae))
    layers = match_layers(architecture, names, study.capture.layers)
    text_tokens = None
    if any(name.endswith(POINT + WORDS) for name in layers):
        tokenizer = source.tokenizer()
        # Attention maps have one channel per text token.  Pipelines with cross-attention pad
        # prompts to the tokenizer's length, so all prompts have this number of tokens.
        text_tokens = next(iter(tokenizer.lengths.values())) if tokenizer is not None else None
    shapes = layer_shapes(architecture, denoiser, vae, layers, text_tokens)
    shapes = {name: pooled_shape(study, name, shape) for name, shape in shapes.items()}
    height, width = architecture.size
    for name, shape in shapes.items():
        if height % shape.y or width % shape.x:
            raise UserError(
                f"capture.layers: images of {height} x {width} pixels do not divide into the "
                f"{shape.y} x {shape.x} tokens of {name}. Fix: choose other layers."
            )
    channels = {LATENTS: int(architecture.vae["latent_channels"]), CLEAN_PIXELS: 3}
    for name in study.input_controls:
        shapes[name] = LayerShape(*architecture.latent, channels[name])
    return shapes


def _exact_properties(study: Study, missing: list[str]) -> tuple[str, ...]:
    """List the properties for which every source image has a ground-truth map.

    Args:
        study: the study.
        missing: error messages about missing files; if there are any, no maps are looked for.

    Raises:
        UserError: the study uses ground-truth maps as labels, but they do not exist.
    """
    present: tuple[str, ...] = ()
    if study.images is not None and not missing:
        props = study.map_properties
        present = exact_map_properties(study.images, image_names(study.images, props), props)
    for prop in study.labels.maps:
        spec = study.labels.labeler(prop)
        if spec and spec.name == EXACT_MAPS and not missing and prop not in present:
            raise UserError(
                f"labels.{prop} is 'maps', but there are no {prop} maps of source images. Fix: set "
                f"source to images and put the maps beside them (name.{prop}.npy, .png or .exr), "
                "or name a labeler"
            )
    return present


def _prompt_notes(study: Study, samples: list[Sample], source: ModelSource) -> list[str]:
    """Warn about prompts that are cut off, or have words that the model was not trained on."""
    notes: list[str] = []
    tokenize = source.tokenizer()
    if tokenize is not None:
        if study.images is not None:
            notes += long_text_notes("images.caption", study.images.caption, tokenize)
        else:
            notes += check_samples(samples, tokenize)
            notes += long_text_notes("prompts.negative", study.prompts.negative or "", tokenize)
    record = read_model_record(study.model.config or study.model.source, study.model.revision)
    return [*notes, *invisible_notes(samples), *unknown_word_notes(samples, record)]


def _input_file_notes(study: Study, size: tuple[int, int]) -> list[str]:
    """Return warnings about prompt files, source images and their ground-truth maps."""
    notes: list[str] = []
    if study.prompts.files is not None:
        notes += encoding_notes(study.prompts.files)
    return notes + list(_source_image_notes(study, size))


def _source_image_notes(study: Study, size: tuple[int, int]) -> tuple[str, ...]:
    """Decode all source images and their maps, and return warnings about them.

    Args:
        study: the study.
        size: height and width of the model's images in pixels.

    Raises:
        UserError: a file cannot be read or has an unsuitable size, or maps have pixels without a
            measured value although the study keeps statistics, which need every pixel.
    """
    if study.images is None:
        return ()
    props = study.map_properties
    check = check_folder(study.images, image_names(study.images, props), size, props)
    for prop, share in check.missing.items():
        spec = study.labels.labeler(prop)
        if share and spec and spec.name == EXACT_MAPS and study.capture.keep != "activations":
            raise UserError(
                f"capture.keep: {study.capture.keep} needs a value for every pixel, but "
                f"{share:.1%} of the pixels of the {prop} maps have no measured value. Fix: set "
                "capture.keep to activations"
            )
    return check.notes
