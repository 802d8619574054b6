"""Scores that tell whether an edited image follows its target and stays the same elsewhere."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.metrics import METRICS
from ldmprobe_core.probing.partial import position_covariates
from ldmprobe_core.study.properties import Property

OWN_LABEL = "own_label"
"""Measure of the agreement with the sample's own label, in the main metric."""

MASK_MEASURES = ("moved", "way", "ghost", "area")
"""Measures of an edited mask beside its agreement with the target, see `mask_measures`."""


def measures_of(prop: Property) -> tuple[str, ...]:
    """List the names of the measures of edited maps of a property, the main metric first."""
    metrics = () if prop.intervention is None else prop.intervention.metrics
    own_label = (OWN_LABEL,) if metrics else ()
    return (*metrics, *own_label, *(MASK_MEASURES if prop.is_mask else ()))


def score_edited_maps(
    prop: Property,
    maps: np.ndarray,
    labels: np.ndarray,
    targets: np.ndarray,
    mean_map: np.ndarray,
) -> np.ndarray:
    """Compare the labeler's maps of edited images with the targets and with the labels.

    Args:
        prop: edited property.
        maps: label maps of the edited images, (sample, y, x); bool for a mask, else values.
        labels: label maps of the unedited images, likewise.
        targets: target maps, likewise.
        mean_map: mean label map of the training samples, (y, x); partial metrics regress it out.

    Returns:
        (measure, sample) float64, in the order of `measures_of`; NaN where undefined.  The
        agreement with an empty mask is undefined: it would be 1 for an edit that makes the object
        vanish, which does not show that the edit leads to the target.
    """
    covariates = position_covariates(mean_map)
    metrics = () if prop.intervention is None else prop.intervention.metrics
    aims = [(name, targets) for name in metrics] + [(name, labels) for name in metrics[:1]]
    scores = [
        np.where(_is_empty(prop, aim), np.nan, METRICS[name].score(maps, aim, covariates))
        for name, aim in aims
    ]
    if prop.is_mask:
        scores += list(mask_measures(maps, labels, targets))
    return np.stack(scores)


def _is_empty(prop: Property, maps: np.ndarray) -> np.ndarray:
    """Return whether each map is an empty mask, (sample,)."""
    return np.logical_not(maps.any((1, 2))) if prop.is_mask else np.zeros(len(maps), bool)


def mask_measures(maps: np.ndarray, labels: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Measure how far an edited mask has moved from its label to its target.

    Args:
        maps: masks of the edited images, (sample, y, x) bool.
        labels: masks of the unedited images, likewise.
        targets: target masks, likewise.

    Returns:
        (4, sample) float64:

        - ``moved``: displacement of the mask's centroid from the label's in the direction of the
          target's centroid, in pixels;
        - ``way``: the same as a fraction of the distance between both centroids;
        - ``ghost``: fraction of the area that the target leaves which still is foreground;
        - ``area``: area of the mask, as a fraction of the label's.

        A measure is NaN where it is undefined: if a mask is empty, the target has the label's
        centroid, or the target covers the label.
    """
    start, goal, end = _centroids(labels), _centroids(targets), _centroids(maps)
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.linalg.norm(goal - start, axis=1)
        distance = np.where(distance > 1e-9, distance, np.nan)
        moved = ((end - start) * (goal - start)).sum(1) / distance
        left = labels & ~targets
        ghost = (maps & left).sum((1, 2)) / left.sum((1, 2))
        area = maps.sum((1, 2)) / labels.sum((1, 2))
    return np.stack([moved, moved / distance, ghost, np.where(np.isfinite(area), area, np.nan)])


def _centroids(masks: np.ndarray) -> np.ndarray:
    """Compute the centroid (row, column) of each mask, (sample, 2); NaN for an empty mask."""
    rows, columns = np.arange(masks.shape[1]), np.arange(masks.shape[2])
    with np.errstate(invalid="ignore"):
        sums = np.stack([masks.sum(2) @ rows, masks.sum(1) @ columns], axis=1)
        return np.asarray(sums / masks.sum((1, 2))[:, None])


def change_outside(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Return the mean absolute change, 0..1, of the pixels outside label and target masks.

    Both masks are those of the sample; the result is (sample,).  For a property that is not a mask,
    the mean is over all pixels of the image.
    """
    if labels.dtype != bool:
        labels = targets = np.zeros(labels.shape, bool)
    return background_change(before, after, labels, targets)


def background_change(
    before: np.ndarray, after: np.ndarray, object_mask: np.ndarray, target_mask: np.ndarray
) -> np.ndarray:
    """Measure how much an edit changes the background, as a mean absolute change of pixel values.

    The background is the part of the image outside both masks.

    Args:
        before, after: images (sample, y, x, rgb) uint8.
        object_mask: bool masks of the object before the edit, (sample, y, x).
        target_mask: bool masks of the object's target, (sample, y, x).

    Returns:
        (sample,) float64 in 0..1; NaN if the masks cover the entire image.
    """
    change = np.abs(before.astype(np.float64) - after).mean(-1) / 255
    background = ~(object_mask | target_mask)
    n_pixels = background.sum((1, 2))
    with np.errstate(invalid="ignore"):
        return np.where(n_pixels > 0, (change * background).sum((1, 2)) / n_pixels, np.nan)
