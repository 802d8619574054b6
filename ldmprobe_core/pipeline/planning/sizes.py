"""Estimates of the space that a study needs in the store."""

from __future__ import annotations

import math
from typing import NamedTuple

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.labeler_sizes import wide_properties
from ldmprobe_core.study.batching import (
    gram_width,
    n_positions,
    permuted_samples,
    step_image_samples,
    step_image_steps,
)
from ldmprobe_core.study.layers import CLEAN_PIXELS, INPUT_CONTROLS, LayerShape
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study


class StoredSamples(NamedTuple):
    """Numbers of samples and steps for which a run stores images and activations.

    Attributes:
        images: number of samples with images and activations.
        permuted: number of those on which the permuted denoiser runs too.
        step_images: number of those with step images.
        steps: number of steps whose images are stored.
    """

    images: int
    permuted: int
    step_images: int
    steps: int


def stored_samples(study: Study, samples: list[Sample], n_stored: int, steps: int) -> StoredSamples:
    """Count the samples and steps for which a run stores images and activations.

    Args:
        study: the study.
        samples: all of its samples; without any, because input files cannot be read, the counts
            are those that the settings ask for, and may be a few samples off.
        n_stored: number of samples with images.
        steps: number of sampler steps.

    Raises:
        UserError: ``trajectory.steps`` does not suit the number of steps.
    """
    decoded = len(step_image_steps(study, steps))
    if not samples:
        return StoredSamples(n_stored, *_requested_samples(study, n_stored), decoded)
    permuted = int((permuted_samples(study, samples) < n_stored).sum())
    return StoredSamples(n_stored, permuted, len(step_image_samples(study, samples)), decoded)


def _requested_samples(study: Study, n_stored: int) -> tuple[int, int]:
    """Count the samples with permuted activations and with step images, from settings alone.

    Args:
        study: a study whose samples are unknown, and so their splits.
        n_stored: number of samples with images.
    """
    control, batch = study.controls.untrained, study.sampling.batch
    permuted = -(-control.samples // batch) * batch if control else 0
    settings, split = study.trajectory, study.probes.split
    part = split.test + (split.validation if settings.of == "heldout" else 0)
    scored = round(part * n_stored)
    if settings.samples != "all":
        scored = min(scored, settings.samples)
    training = min(round(split.train * n_stored), settings.training)
    # The control gets the same share of the validation samples as of the training samples.
    share = split.validation / split.train if CLEAN_PIXELS in study.input_controls else 0
    decoded = scored + training + math.ceil(training * share)
    return min(permuted, n_stored), min(decoded, n_stored)


def stored_bytes(
    study: Study,
    shapes: dict[str, LayerShape],
    size: tuple[int, int],
    steps: int,
    stored: StoredSamples,
) -> dict[str, int]:
    """Estimate the bytes that a run needs in the store before compression, by kind of array.

    Args:
        study: the study.
        shapes: layer name to the shape of its activations, including input controls.
        size: height and width of images in pixels.
        steps: number of sampler steps.
        stored: numbers of samples and steps in the store.
    """
    count, step_images = stored.images, stored.step_images * stored.steps
    pixels = size[0] * size[1]
    values = sum(s.y * s.x * s.channels for name, s in shapes.items() if name not in INPUT_CONTROLS)
    inputs = sum(s.y * s.x * s.channels for name, s in shapes.items() if name in INPUT_CONTROLS)
    maps = study.labels.maps
    metrics = sum(len(property_of(prop).metrics) for prop in maps)
    scores = metrics * len(study.conditions) * len(study.kinds)
    for condition in study.conditions:
        if condition.repeated and study.controls.enabled(condition.name):
            scores += len(maps) * study.controls.permutations
    each = steps * study.capture.value_bytes
    wide = wide_properties(study)
    step_bytes = sum(4 if prop in wide else 2 for prop in maps)
    sizes = {
        "activations": count * each * values,
        "activations_permuted": stored.permuted * each * values,
        "inputs": count * each * inputs,
        "images": pixels * 3 * (count + 2 * step_images),
        "labels": pixels * (len(maps) * 4 * count + 2 * step_bytes * step_images),
        "scores": count * steps * len(shapes) * 4 * scores,
    }
    return {name: size for name, size in sizes.items() if size}


def sum_bytes(study: Study, shapes: dict[str, LayerShape], steps: int) -> int:
    """Estimate the bytes of one accumulator's sufficient statistics; 0 if the study keeps none.

    Args:
        study: the study.
        shapes: layer name to the shape of its activations.
        steps: number of sampler steps.
    """
    if study.capture.keep == "activations":
        return 0
    entries = 0
    for network in ("trained", "permuted") if study.controls.untrained else ("trained",):
        for name, shape in shapes.items():
            if name == CLEAN_PIXELS:
                continue
            if network == "trained" or name not in INPUT_CONTROLS:
                width = gram_width(study, network, shape.as_probed(name).channels)
                entries += width * (width + 1) // 2
                entries += n_positions((shape.y, shape.x)) * width
    return entries * steps * 8


def pooled_shape(study: Study, name: str, shape: LayerShape) -> LayerShape:
    """Return the shape of a layer's stored activations, after pooling by ``capture.pool``.

    Raises:
        UserError: the layer's tokens do not divide into blocks.
    """
    side = study.capture.block_side(shape.y, shape.x)
    if shape.y % side or shape.x % side:
        raise UserError(
            f"capture.pool.by: the {shape.y} x {shape.x} tokens of {name} do not divide into "
            f"square blocks of this side ({side}). Fix: set it to a number that divides both sides "
            "of the token grid, or raise capture.pool.above"
        )
    return LayerShape(shape.y // side, shape.x // side, shape.channels)
