"""Scores of image labelers on the images decoded at each step, to compare with the probes.

A labeler was not fitted to the study's labels, while a probe was.  For a fair comparison, its maps
are also scored after a linear recalibration at each step, which is fitted to training samples:

    a x map + b x training mean map + c.

The recalibration has the same position term as the probes, and corrects a labeler whose maps of
blurred images are too small or shifted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.analysis.controls.prompt_control import control_grid
from ldmprobe_core.analysis.curves import RECALIBRATED
from ldmprobe_core.pipeline.groups import STEP_IMAGES, samples_in
from ldmprobe_core.pipeline.labels import as_label
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.detection import best_cut
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.measured import constant_value
from ldmprobe_core.probing.metrics import HeadlineScorer
from ldmprobe_core.probing.ranks import flatten_maps
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import property_of

_MOST_TRAINING_SAMPLES = 64
"""Largest number of training samples to which a recalibration is fitted.

It has only three parameters, and needs training samples with step images.
"""


PART_BYTES = 16 << 20
"""Largest number of bytes of a labeler's maps that are read at once.

Memory of this size is used again for the next maps; larger parts are requested from the system each
time, which clears it first.
"""


def rival_scores(
    run: Run, prop: str, source: str, labels: LabelSet, test: np.ndarray, steps: int
) -> dict[str, np.ndarray]:
    """Score a property's labeler on the images decoded at each step, in the main metric.

    Args:
        run: finished run.
        prop: name of the property.
        source: what the images are decoded from, one of `storage.run.SOURCES`.
        labels: label maps and splits of the run.
        test: indices of the test samples, (test sample,).
        steps: number of sampler steps.

    Returns:
        scores (step, test sample) of the maps as they are (by the name of the source) and
        recalibrated (``trajectory_recalibrated``); NaN where there are no step images or a labeler
        gave no maps, where there are no training samples to recalibrate with, and everywhere if
        the labels of the test samples with step images are one constant.
    """
    index, decoded = samples_in(run, STEP_IMAGES), run.read(STEP_IMAGES, "step") - 1
    train = labels.train[np.isin(labels.train, index)][:_MOST_TRAINING_SAMPLES]
    recalibrations = _fit_recalibrations(run, prop, source, labels, train)
    scored = np.flatnonzero(np.isin(test, index))
    truth = labels.maps[prop][test[scored]]
    headline = HeadlineScorer(prop, truth)
    plain, recalibrated = np.full((2, steps, len(test)), np.nan)
    for first, maps in _maps_in_parts(run, prop, source, test[scored]):
        columns = scored[first : first + len(maps)]
        for i, step in enumerate(decoded):
            one = maps[:, i]
            # A study without a labeler for the property reads exact maps from files.  Such maps
            # exist for final images only, so the maps of step images are all NaN.
            given = _have_values(one)
            if not given.any():
                continue
            if not given.all():
                # Any values will do, because their scores are left out.
                one = np.where(given[:, None, None], one, 0)
            found = headline.score(as_label(run.study, prop, one), first)
            plain[step, columns] = np.where(given, found, np.nan)
            if (recalibration := recalibrations[i]) is not None:
                found = headline.score(recalibration.apply(one), first)
                recalibrated[step, columns] = np.where(given, found, np.nan)
    if constant_value(truth) is not None:
        plain[:], recalibrated[:] = np.nan, np.nan
    return {source: plain, source + RECALIBRATED: recalibrated}


def _have_values(maps: np.ndarray) -> np.ndarray:
    """Mark the maps (n, y, x) with values other than NaN, (n,) bool."""
    given = ~np.isnan(maps[:, 0, 0])
    given[~given] = ~np.isnan(maps[~given]).all((1, 2))
    return given


def _maps_in_parts(
    run: Run, prop: str, source: str, samples: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a labeler's maps of step images in parts of consecutive samples.

    All steps are read at once, because a stored chunk holds all steps of one sample.

    Args:
        samples: indices of samples that have step images, ascending, (n,).

    Yields:
        place of the part's first sample in `samples`, and maps (part, step, y, x).
    """
    rows = np.searchsorted(samples_in(run, STEP_IMAGES), samples)
    stored = run.open(f"labels_{source}")[prop]
    at_once = max(1, PART_BYTES * len(stored) // max(1, stored.nbytes))
    for first in range(0, len(rows), at_once):
        yield first, run.read(f"labels_{source}", prop, sample=rows[first : first + at_once])


def _fit_recalibrations(
    run: Run, prop: str, source: str, labels: LabelSet, train: np.ndarray
) -> list[Recalibration | None]:
    """Fit one recalibration for each decoded step; None for a step without maps to fit to."""
    steps = len(run.read(STEP_IMAGES, "step"))
    size = labels.means[prop].shape
    grid = control_grid((size[0], size[1]))
    blocks = np.empty((steps, len(train), *grid))
    for first, maps in _maps_in_parts(run, prop, source, train):
        means = block_means(maps.reshape(-1, *size), grid)
        blocks[:, first : first + len(maps)] = means.reshape(len(maps), steps, *grid).swapaxes(0, 1)
    return [
        Recalibration.fit(of_step, labels, prop, train) if np.isfinite(of_step).any() else None
        for of_step in blocks
    ]


@dataclass(frozen=True)
class Recalibration:
    """Linear recalibration of a labeler's maps, map x factor + offset, fitted to labels.

    Attributes:
        factor: factor of the map.
        position: part of the offset that depends on the position, a multiple of the mean label map,
            (y, x).
        constant: rest of the offset.
        cut: value above which a recalibrated pixel of a mask is foreground; None for other
            properties.
    """

    factor: float
    position: np.ndarray
    constant: float
    cut: float | None

    @classmethod
    def fit(
        cls, known: np.ndarray, labels: LabelSet, prop: str, train: np.ndarray
    ) -> Recalibration:
        """Fit a recalibration to the labels of training samples, by least squares.

        Args:
            known: block means of the labeler's maps of the images of training samples, on any grid,
                (train, y, x).  A coarse grid suffices for three parameters.
            labels: label maps of the run.
            prop: name of the property.
            train: indices of these training samples, (train,).

        Returns:
            the recalibration; for a mask with the cut of the best Dice on the training samples.
        """
        grid = known.shape[1], known.shape[2]
        truth, blocks = flatten_maps(labels.tokens(prop, grid)[train]), flatten_maps(known)
        mean_blocks = np.broadcast_to(labels.mean_tokens(prop, grid).ravel(), blocks.shape)
        design = np.stack([blocks, mean_blocks, np.ones_like(blocks)], axis=-1)
        usable = np.isfinite(truth) & np.isfinite(blocks)
        a, b, c = np.linalg.lstsq(design[usable], truth[usable], rcond=None)[0]
        cut = None
        if property_of(prop).is_mask:
            weights = labels.token_weights(prop, grid)
            cut = best_cut(
                design @ [a, b, c], truth, None if weights is None else flatten_maps(weights[train])
            )
        return cls(float(a), b * labels.means[prop], float(c), cut)

    def apply(self, maps: np.ndarray) -> np.ndarray:
        """Recalibrate maps (n, y, x); the result is float64, or bool for a mask."""
        values = np.multiply(maps, self.factor, dtype=np.float64)
        values += self.position
        values += self.constant
        return values if self.cut is None else values > self.cut
