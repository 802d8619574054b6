"""Before anything costs time: what a study needs, and whether machine and store can give it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from ldmprobe_core.capture import LayerShape, layer_shapes, match_layers
from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers import check_labeler, labelers_of
from ldmprobe_core.metrics import METRICS
from ldmprobe_core.models import image_size, model_folder, pick_device, skeleton, timesteps
from ldmprobe_core.store import Run
from ldmprobe_core.study import Study


@dataclass(frozen=True)
class Plan:
    """Sizes of a study, known from configs alone.

    Attributes:
        folder: of the model.
        size: height and width of the images in pixels.
        shapes: of every captured layer.
        steps: the scheduler's numbers of all steps.
        bytes_of: stored bytes by kind of array, before compression.
    """

    folder: Path
    size: int
    shapes: dict[str, LayerShape]
    steps: list[float]
    bytes_of: dict[str, int]

    @property
    def bytes(self) -> int:
        """Stored bytes in all."""
        return sum(self.bytes_of.values())

    @property
    def cells(self) -> int:
        """Steps x layers."""
        return len(self.steps) * len(self.shapes)


def make_plan(study: Study) -> Plan:
    """Check everything of a study that can be checked without loading weights, and size it.

    Raises:
        UserError: no such model, layer, labeler or device.
    """
    pick_device(study.execution.device)
    for prop, name in labelers_of(study).items():
        check_labeler(prop, name)
    folder = model_folder(study.model)
    denoiser = skeleton(folder)
    layers = match_layers(denoiser, study.capture.layers)
    side = denoiser.config["sample_size"]
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    context = text.get("max_position_embeddings", 77)
    shapes = layer_shapes(denoiser, layers, (side, side), context)
    size = image_size(folder)
    for name, shape in shapes.items():
        if size % shape.y or size % shape.x:
            raise UserError(
                f"capture.layers: {name} has {shape.y} x {shape.x} tokens, into which images of "
                f"{size} x {size} do not divide: choose other layers"
            )
    steps = timesteps(folder, study)
    return Plan(folder, size, shapes, steps, _bytes(study, shapes, size, len(steps)))


def check_store(plan: Plan, run: Run) -> None:
    """Refuse a place that cannot be written to, or a local disk that is too small for a new run.

    Raises:
        UserError: one of the two.
    """
    run.require_writable()
    if run.remote or run.exists:
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


def _bytes(study: Study, shapes: dict[str, LayerShape], size: int, steps: int) -> dict[str, int]:
    n, pixels = study.prompts.samples, size * size
    values = sum(s.y * s.x * s.channels for s in shapes.values())
    denoisers = 2 if study.controls.permuted else 1
    maps = study.labels.maps
    metrics = sum(len(METRICS[prop]) for prop in maps)
    return {
        "activations": n * steps * values * 2 * denoisers,
        "images": n * pixels * 3 * (1 + 2 * steps),
        "labels": n * pixels * len(maps) * (4 + 2 * 2 * steps),
        "scores": n * steps * len(shapes) * metrics * 4 * 3 * len(study.probes.kinds),
    }
