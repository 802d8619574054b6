"""Labels of a run in the form that probes are fitted to: boolean masks and float maps."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ldmprobe_core.pipeline.statistics import mean_maps, require_accumulated
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.measured import mean_map, measured
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import LABEL
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.schema import Study


def as_labels(study: Study, maps: dict[str, Any]) -> dict[str, np.ndarray]:
    """Convert the maps of every property to labels for probes: bool masks and float maps."""
    return {prop: as_label(study, prop, values) for prop, values in maps.items()}


def as_label(study: Study, prop: str, values: np.ndarray) -> np.ndarray:
    """Convert the maps of one property to labels for probes: bool masks or float maps.

    Maps of a mask property, such as foreground, are thresholded at ``labels.threshold``.  Other
    maps are returned unchanged.

    Args:
        study: study with the threshold.
        prop: name of the property.
        values: maps (..., y, x); NaN marks pixels without a measured value.

    Returns:
        for a mask property, a bool array, or a float32 array of 0, 1 and NaN if there are pixels
        without a measured value.
    """
    if not property_of(prop).is_mask:
        return values
    mask = values > study.labels.threshold
    known = measured(values)
    return mask if known is None else np.where(known, mask, np.nan).astype(np.float32)


def top_classes(scores: np.ndarray) -> np.ndarray:
    """Return the index of each image's class with the highest score, or -1 where classes tie.

    With `numpy.argmax`, a labeler that gives every class the same score would seem to recognise the
    class with the lowest index.

    Args:
        scores: class scores (..., class).
    """
    leading = scores == scores.max(-1, keepdims=True)
    return np.where(leading.sum(-1) == 1, leading.argmax(-1), -1)


def label_set(run: Run) -> LabelSet:
    """Read labels and splits of a run's stored images, and mean label maps of training samples.

    Raises:
        RuntimeError: a batch is not labeled yet, or an accumulation unit is not complete yet.
    """
    run.progress.require_complete(LABEL)
    study = run.study
    maps = as_labels(study, {prop: run.read("labels", prop) for prop in study.labels.maps})
    split = np.array([sample.split for sample in run.samples[: run.n_stored]])
    train = np.flatnonzero(split == "train")
    if study.capture.keep == "statistics":
        require_accumulated(run)
        means = mean_maps(run)
    else:
        means = {prop: mean_map(values[train]) for prop, values in maps.items()}
    return LabelSet(
        maps,
        means,
        train=train,
        validation=np.flatnonzero(split == "validation"),
        heldout=np.flatnonzero(split != "train"),
    )


@lru_cache(maxsize=2)
def cached_label_set(url: str, identity: str) -> LabelSet:
    """Return the labels of a run; the first call in a process reads them, later ones use a cache.

    Args:
        url: URL of the run.
        identity: identifier that a run gets when it is created.  It prevents the use of cached
            labels after the run at this URL was deleted and created again.
    """
    return label_set(Run(url))
