"""Labels of a run as probes are fitted to them: masks, maps and their training means."""

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
    """`as_label` of each property's maps."""
    return {prop: as_label(study, prop, values) for prop, values in maps.items()}


def as_label(study: Study, prop: str, values: np.ndarray) -> np.ndarray:
    """Convert maps (..., y, x) for probes: a mask becomes bool, by ``labels.threshold``.

    A mask with pixels that were not measured becomes float32: 0, 1, and NaN there.
    """
    if not property_of(prop).is_mask:
        return values
    mask = values > study.labels.threshold
    known = measured(values)
    return mask if known is None else np.where(known, mask, np.nan).astype(np.float32)


def label_set(run: Run) -> LabelSet:
    """Labels of the stored finished images, with splits.

    Raises:
        RuntimeError: a batch is not labeled yet, or not yet in the statistics.
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
    """`label_set`, cached in this process for the next cells of the same run.

    Args:
        identity: of the run; it changes if the run is deleted and created again.
    """
    return label_set(Run(url))
