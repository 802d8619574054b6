"""Computation of one labeling unit: the labels of one batch's images at every step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ldmprobe_core.errors import NEW_RUN, RunError
from ldmprobe_core.labelers.base import Labeler
from ldmprobe_core.models.output_checks import (
    require_finite_labels,
    require_repeatable,
    require_shares,
    require_varied,
)
from ldmprobe_core.pipeline.groups import STEP_IMAGES, step_images_in
from ldmprobe_core.pipeline.model_cache import get_labelers, model_access
from ldmprobe_core.storage.nodes import open_array
from ldmprobe_core.storage.run import SOURCES, Run
from ldmprobe_core.storage.units import GENERATE, LABEL
from ldmprobe_core.study.properties import CLASS, property_of
from ldmprobe_core.study.schema import Study

CLASS_SCORE = "class_score"
"""Name of the array of class probabilities."""


def label_batch(url: str, batch: int) -> dict[str, Any]:
    """Label the final images and the step images of one batch, and write the labels to the run.

    Returns:
        numbers of ``images`` labeled, ``seconds`` taken and ``bytes`` written; 0 if already done.

    Raises:
        RuntimeError: the batch is not generated yet, or images or labels are unusable.
        UserError: the labelers' weights differ from those with which the run was created.
    """
    run = Run(url)
    if run.progress.is_done(LABEL, batch):
        return {"images": 0, "seconds": 0.0, "bytes": 0}
    if not run.progress.is_done(GENERATE, batch):
        raise RuntimeError(
            f"{run.url}: batch {batch} cannot be labeled before it is generated. Fix: generate it."
        )
    started = time.monotonic()
    study = run.study
    members = study.batches(run.n_stored)[batch]
    region = slice(members.start, members.stop)
    final = run.read("images", "image", sample=region)
    require_varied(final, members)
    count, written = len(final), 0
    labels = _label(run, final, members)
    if batch == 0:
        _require_sound(run, final, members, labels)
    for prop in study.labels.maps:
        if prop not in labels:
            labels[prop] = run.read("exact_maps", prop, sample=region)
    written += _write(run, "labels", labels, region)
    chosen, rows = step_images_in(run, members)
    for source in SOURCES if chosen else ():
        images = run.read(STEP_IMAGES, source, sample=rows)
        count += images.shape[0] * images.shape[1]
        # The last step image of a generated sample is its finished image.  The labels of that image
        # are in `labels` already, so they are copied instead of computed again.
        reused = source == "trajectory" and study.images is None
        last = {name: values[chosen.samples] for name, values in labels.items()} if reused else {}
        of_steps = _label_steps(run, images, last, members)
        written += _write(run, f"labels_{source}", of_steps, rows)
    run.progress.mark_done(LABEL, batch)
    return {"images": count, "seconds": time.monotonic() - started, "bytes": written}


def _require_sound(
    run: Run, images: np.ndarray, members: range, labels: dict[str, np.ndarray]
) -> None:
    """Check that labels are functions of single images, and that labelers left the images alone.

    Args:
        run: run of the labelers.
        images: images of the first batch, (n, y, x, rgb), as they are after labeling.
        members: indices of the batch's samples.
        labels: their labels by array name.

    Raises:
        RunError: a label differs without the other images, or a labeler has changed the images.
    """
    stored = run.read("images", "image", sample=slice(members.start, members.stop))
    if not np.array_equal(images, stored):
        raise RunError(
            "labels: a labeler changes the images that it gets, which other labelers get too "
            f"({', '.join(labels)}). Fix: let it work on a copy, images.copy(), and "
            f"{NEW_RUN}"
        )
    for name, alone in _label(run, images[:1], members[:1]).items():
        prop = CLASS if name == CLASS_SCORE else name
        require_repeatable(prop, labels[name], alone, members[0])


def _label(
    run: Run, images: np.ndarray, members: range, skipped: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Apply the run's labelers to images (n, y, x, rgb); return labels by array name.

    Args:
        run: run of the labelers.
        images: images to label.
        members: indices of the batch's samples, for messages.
        skipped: properties that are not labeled.
    """
    study = run.study
    with model_access(study):
        torch.set_num_threads(study.sampling.threads)
        labelers = get_labelers(study, run.attributes["labeler_fingerprints"])
        chosen = {prop: labeler for prop, labeler in labelers.items() if prop not in skipped}
        return checked_labels(study, chosen, images, members)


def checked_labels(
    study: Study, labelers: Mapping[str, Labeler], images: np.ndarray, members: Sequence[int]
) -> dict[str, np.ndarray]:
    """Apply labelers to images, and check that their labels are usable.

    Call this function inside the block of `model_access`.

    Args:
        study: study of the labelers.
        labelers: labeler by property.
        images: (n, y, x, rgb) uint8; every sample has the same number of consecutive images.
        members: indices of the samples, for messages.

    Returns:
        labels by array name.

    Raises:
        RunError: a labeler raised an exception, a label is not finite, or a value of a mask or a
            class probability is not a share.
        UserError: a labeler returned no numbers, or another shape.
    """
    labels = {
        CLASS_SCORE if prop == CLASS else prop: labeler(images)
        for prop, labeler in labelers.items()
    }
    for name, values in labels.items():
        require_finite_labels(CLASS if name == CLASS_SCORE else name, values, members)
        if name == CLASS_SCORE:
            require_shares(CLASS, values, members, "class probabilities")
        elif name in study.labels.maps and property_of(name).is_mask:
            require_shares(name, values, members)
    return labels


def _label_steps(
    run: Run, images: np.ndarray, last: dict[str, np.ndarray], members: range
) -> dict[str, np.ndarray]:
    """Apply the run's labelers to step images (n, step, y, x, rgb); return labels by array name.

    Args:
        run: run of the labelers.
        images: step images.
        last: labels of the last step's images, (n, ...) each, if they are known.
        members: indices of the batch's samples, for messages.
    """
    unlabeled = images[:, :-1] if last and images.shape[1] > 1 else images
    flat = unlabeled.reshape(-1, *images.shape[2:])
    # Skip properties with one number per image, which are labeled in finished images only.
    skipped = run.study.labels.numbers
    labels = {
        name: values.reshape(*unlabeled.shape[:2], *values.shape[1:])
        for name, values in _label(run, flat, members, skipped).items()
    }
    if unlabeled.shape[1] < images.shape[1]:
        labels = {
            name: np.concatenate([values, last[name][:, None]], axis=1)
            for name, values in labels.items()
        }
    for prop in run.study.labels.maps:
        if prop not in labels:
            # A map from a file describes the source image only, so step images get the label NaN.
            labels[prop] = np.full(images.shape[:4], np.nan, np.float32)
    return labels


def _write(run: Run, group: str, labels: dict[str, np.ndarray], rows: slice) -> int:
    """Write labels to a group in the data types of its arrays; return the bytes written.

    Raises:
        RunError: a label is too large for float16, in which most labels of step images are stored.
    """
    stored = {}
    for name, values in labels.items():
        dtype = open_array(run.store, run.url, f"{group}/{name}").dtype
        with np.errstate(all="ignore"):
            stored[name] = values.astype(dtype)
        if np.isinf(stored[name]).any():
            prop = CLASS if name == CLASS_SCORE else name
            raise RunError(
                f"labels.{prop}: the labeler's value {np.abs(values).max():g} is too large for "
                f"{dtype}, in which the run stores it in {group}. Fix: let the labeler return "
                f"values below {np.finfo(dtype).max:g}, and begin a new run"
            )
    run.write(group, stored, sample=rows)
    return sum(values.nbytes for values in stored.values())
