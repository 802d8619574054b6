"""Before anything costs time: what a study needs, and whether machine and store can give it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.registry import EXACT_MAPS, check_labeler, labelers_of, require_known
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.devices import pick_device
from ldmprobe_core.models.layers import capturable_modules, layer_shapes, match_layers
from ldmprobe_core.models.loading import meta_modules, timesteps
from ldmprobe_core.models.weights import config_folder, has_weights
from ldmprobe_core.pipeline.sizes import _bytes, _memory, _sum_bytes
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.batching import BUFFERS
from ldmprobe_core.study.image_folder import exact_map_properties, image_names
from ldmprobe_core.study.layers import LATENTS, LayerShape
from ldmprobe_core.study.samples import make_samples, n_stored_samples, resolve_inputs
from ldmprobe_core.study.schema import Study


@dataclass(frozen=True)
class StudyPlan:
    """Sizes of a study, known from configs alone.

    Attributes:
        folder: of the model's configs.
        size: height and width of the images in pixels.
        shapes: of every captured layer.
        steps: the scheduler's numbers of all steps.
        count: number of images.
        n_stored: how many of them are stored, with their activations; the others leave statistics.
        bytes_of: stored bytes by kind of array, before compression.
        memory: expected peak bytes of a worker that generates, by kind.
        exact_properties: properties of which every picture has an exact map.
        labelers: digest of each labeler's weights.
        missing: what a run needs and this machine does not have, a sentence each.
    """

    folder: Path
    size: tuple[int, int]
    shapes: dict[str, LayerShape]
    steps: list[float]
    count: int
    n_stored: int
    bytes_of: dict[str, int]
    memory: dict[str, int]
    exact_properties: tuple[str, ...]
    labelers: dict[str, str]
    missing: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Stored bytes in all."""
        return sum(self.bytes_of.values())

    @property
    def cells(self) -> int:
        """Steps x layers, the latents not among them."""
        return len(self.steps) * len(self.layers)

    @property
    def layers(self) -> list[str]:
        """Captured layers, in the denoiser's order."""
        return [name for name in self.shapes if name != LATENTS]

    def require_complete(self) -> None:
        """Refuse a study that cannot be carried out here.

        Raises:
            UserError: something is missing; the first of it is named.
        """
        if self.missing:
            raise UserError(self.missing[0])


def plan_study(study: Study) -> StudyPlan:
    """Check everything of a study that can be checked without loading weights, and size it.

    Raises:
        UserError: a mistake, such as a layer or a labeler that does not exist.  What is merely not
            on this machine is listed in the plan instead.
    """
    missing: list[str] = []

    def attempt(check: Callable[[], Any]) -> Any:
        try:
            return check()
        except UserError as error:
            missing.append(str(error))
            return None

    if not study.execution.elsewhere:
        attempt(lambda: pick_device(study.execution.wanted_device))
    folder = config_folder(study.model)
    if not has_weights(folder):
        missing.append(
            f"model.source {study.model.source!r}: its weights (safetensors) are not on this "
            "machine: fetch them, or give the folder they are in"
        )
    architecture = detect_architecture(folder)
    denoiser, vae = meta_modules(architecture)
    names = list(capturable_modules(denoiser, vae))
    layers = match_layers(architecture, names, study.capture.layers)
    shapes = layer_shapes(architecture, denoiser, vae, layers)
    height, width = size = architecture.size
    for name, shape in shapes.items():
        if height % shape.y or width % shape.x:
            raise UserError(
                f"capture.layers: {name} has {shape.y} x {shape.x} tokens, into which images of "
                f"{height} x {width} do not divide: choose other layers"
            )
    if study.controls.latents:
        shapes[LATENTS] = LayerShape(*architecture.latent, int(architecture.vae["latent_channels"]))
    steps = timesteps(architecture, study)
    labelers = {}
    for prop, spec in labelers_of(study).items():
        require_known(prop, spec)
        labelers[prop] = attempt(partial(check_labeler, prop, spec))
    found = attempt(lambda: resolve_inputs(study))
    pinned = found or study
    count = pinned.count
    if count is None:
        raise UserError(missing[-1])  # without the files nothing can be sized
    stored = count
    if study.capture.keep == "statistics" and found:
        stored = n_stored_samples(make_samples(pinned), study)
    truth = _truth(pinned, missing)
    sums = _sum_bytes(study, shapes, len(steps))
    sizes = _bytes(study, shapes, size, len(steps), stored)
    if sums:
        sizes["statistics"] = BUFFERS * min(study.capture.accumulators, count) * sums
    memory = _memory(study, architecture, denoiser, vae, shapes, len(steps), sums)
    return StudyPlan(
        folder, size, shapes, steps, count, stored, sizes, memory, truth, labelers, tuple(missing)
    )


def _truth(study: Study, missing: list[str]) -> tuple[str, ...]:
    """Properties with exact maps; a study that asks for maps that are not there is told so."""
    present: tuple[str, ...] = ()
    if study.images is not None and not missing:
        present = exact_map_properties(study.images, image_names(study.images))
    for prop in study.labels.maps:
        spec = study.labels.labeler(prop)
        if spec and spec.name == EXACT_MAPS and not missing and prop not in present:
            raise UserError(
                f"labels.{prop} is 'maps', and there are no {prop} maps beside the pictures: add "
                f"them (name.{prop}.npy, .png or .exr; source must be images), or name a labeler"
            )
    return present


def check_store(plan: StudyPlan, run: Run) -> None:
    """Refuse a place that cannot be written to, or a local disk that is too small for a new run.

    Raises:
        UserError: one of the two.
    """
    run.location.require_writable()
    if run.location.remote or run.exists:
        return
    place = Path(run.url).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if plan.bytes > free:
        raise UserError(
            f"store {run.url!r} has {free / 1e9:.1f} GB free and the study needs about "
            f"{plan.bytes / 1e9:.1f} GB: lower prompts.samples, name fewer capture.layers, or "
            "choose another place with --store"
        )
