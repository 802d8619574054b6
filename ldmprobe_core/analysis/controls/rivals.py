"""Scores of image labelers on the images decoded at each step, to compare with the probes.

A labeler was not fitted to the study's labels, while a probe was.  For a fair comparison, its maps
are also scored after a linear recalibration at each step, which is fitted to training samples:

    a x map + b x training mean map + c.

The recalibration has the same position term as the probes, and corrects a labeler whose maps of
blurred images are too small or shifted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.analysis.controls.prompt_control import control_grid
from ldmprobe_core.analysis.curves import RECALIBRATED
from ldmprobe_core.pipeline.groups import STEP_IMAGES, samples_in
from ldmprobe_core.pipeline.labels import as_label
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.detection import best_cut
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.metrics import HeadlineScorer
from ldmprobe_core.probing.ranks import flatten_maps, iter_chunks
from ldmprobe_core.storage.run import SOURCES, Run
from ldmprobe_core.study.properties import property_of

_MOST_TRAINING_SAMPLES = 64
"""Largest number of training samples to which a recalibration is fitted.

It has only three parameters, and needs training samples with step images.
"""


def rival_scores(
    run: Run, prop: str, labels: LabelSet, test: np.ndarray, steps: int
) -> dict[str, np.ndarray]:
    """Score a property's labeler on the images decoded at each step, in the main metric.

    Args:
        run: finished run.
        prop: name of the property.
        labels: label maps and splits of the run.
        test: indices of the test samples, (test sample,).
        steps: number of sampler steps.

    Returns:
        scores (step, test sample) by source of the images (``trajectory``, ``clean``), as they are
        and recalibrated (``trajectory_recalibrated``); NaN where there are no step images or a
        labeler gave no maps, or where there are no training samples to recalibrate with.
    """
    index, decoded = samples_in(run, STEP_IMAGES), run.read(STEP_IMAGES, "step") - 1
    scored = np.isin(test, index)
    train = labels.train[np.isin(labels.train, index)][:_MOST_TRAINING_SAMPLES]
    headline = HeadlineScorer(prop, labels.maps[prop][test[scored]])
    scores = {}
    for source in SOURCES:
        plain, recalibrated = np.full((2, steps, len(test)), np.nan)
        # Read all steps at once, because a stored chunk holds all steps of one sample.
        maps, known = (
            run.read(f"labels_{source}", prop, sample=np.searchsorted(index, members))
            for members in (test[scored], train)
        )
        for i, step in enumerate(decoded):
            plain[step, scored], recalibrated[step, scored] = _scores_at(
                run, prop, labels, maps[:, i], known[:, i], train, headline
            )
        scores[source], scores[source + RECALIBRATED] = plain, recalibrated
    return scores


def _scores_at(
    run: Run,
    prop: str,
    labels: LabelSet,
    maps: np.ndarray,
    known: np.ndarray,
    train: np.ndarray,
    headline: HeadlineScorer,
) -> tuple[np.ndarray, np.ndarray]:
    """Score a labeler's maps of the images of one step, before and after linear recalibration.

    Args:
        run: finished run.
        prop: name of the property.
        labels: label maps of the run.
        maps: the labeler's maps of test samples, (n, y, x).
        known: its maps of training samples, (train, y, x).
        train: indices of these training samples, (train,).
        headline: scorer of the property on the same test samples.

    Returns:
        scores of the maps before and after recalibration, (n,) each; NaN if undefined.
    """
    plain, recalibrated = np.full((2, len(maps)), np.nan)
    # A study without a labeler for the property reads exact maps from files.  Such maps exist for
    # final images only, so the maps of step images are all NaN.
    if np.isnan(maps[:, 0, 0]).all() and np.isnan(maps).all():
        return plain, recalibrated
    recalibration = Recalibration.fit(known, labels, prop, train) if len(train) else None
    start = 0
    # Recalibrated maps are float64, so a few at a time are in memory.
    for flat in iter_chunks(flatten_maps(maps)):
        rows, part = slice(start, start + len(flat)), flat.reshape(-1, *maps.shape[1:])
        plain[rows] = headline.score(as_label(run.study, prop, part), start)
        if recalibration is not None:
            recalibrated[rows] = headline.score(recalibration.apply(part), start)
        start += len(flat)
    return plain, recalibrated


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

        The fit uses block means on a grid of at most 16 x 16, because it has only three parameters.

        Args:
            known: the labeler's maps of the images of training samples, (train, y, x).
            labels: label maps of the run.
            prop: name of the property.
            train: indices of these training samples, (train,).

        Returns:
            the recalibration; for a mask with the cut of the best Dice on the training samples.
        """
        grid = control_grid((known.shape[1], known.shape[2]))
        truth = flatten_maps(labels.tokens(prop, grid)[train])
        blocks = flatten_maps(block_means(known, grid))
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
