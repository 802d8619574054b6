"""Joint scores of a class map's components: the intersection over union of its classes.

Each class is a mask property of its own, with probes and controls.  Together, their probes predict
the class of each token: the one whose probe predicts the largest value.  The scores are those of
semantic segmentation (Everingham et al. 2010, The PASCAL Visual Object Classes Challenge, section
4.1): of each class, the pixels in both prediction and label over those in either, summed over all
images; and the mean over the classes that occur in the labels of these images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ldmprobe_core.analysis.controls.coverage import partial_inputs
from ldmprobe_core.analysis.controls.records import ClassMapExact, ClassMapRecord, ClassMapScore
from ldmprobe_core.analysis.joint.probes import JointProbes
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.probing.inference.selection import enough_defined
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.extensions.joint import joint_properties


def overlap(tokens: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Measure intersection and union of prediction and label, and the label, by image and class.

    The class with the largest predicted value at a token is the class of all pixels of its block.

    Args:
        tokens: predicted values (n, token y, token x, class); NaN for an image without a
            prediction.
        truth: labels (n, y, x, class), 1 in the class and 0 elsewhere; NaN at pixels that were not
            measured, which are left out.

    Returns:
        (3, class, n) float64, intersection, union and label as fractions of the image's pixels;
        NaN for an image without a prediction.
    """
    grid = tokens.shape[1], tokens.shape[2]
    known = ~np.isnan(truth).any(-1)
    labeled = np.stack(
        [
            block_means(np.where(known, truth[..., part], 0.0), grid)
            for part in range(truth.shape[-1])
        ],
        axis=-1,
    )
    measured = block_means(known.astype(np.float64), grid)[..., None]
    chosen = tokens.argmax(-1)[..., None] == np.arange(tokens.shape[-1])
    both = np.where(chosen, labeled, 0).mean((1, 2))
    either = np.where(chosen, measured, labeled).mean((1, 2))
    undefined = np.isnan(tokens).any((1, 2, 3))
    return np.where(undefined, np.nan, np.stack([both.T, either.T, labeled.mean((1, 2)).T]))


def class_iou(means: np.ndarray) -> np.ndarray:
    """Compute each class's intersection over union (IoU) from mean overlaps.

    Args:
        means: means of overlaps, (draw, 3, class).

    Returns:
        (draw, class) float64; NaN for a class that is in no label.  Whether a class has an IoU
        depends on the labels alone, so that two predictions of the same images are compared in the
        same classes: a class that only one of them predicts would count as 0 for that one.
    """
    both, either, labeled = means[:, 0], means[:, 1], means[:, 2]
    return np.asarray(both / np.where(labeled > 0, either, np.nan))


def mean_iou(means: np.ndarray) -> np.ndarray:
    """Average the IoU over the classes that occur in a label.

    Args:
        means: means of overlaps, (draw, 3, class).

    Returns:
        (draw,) float64; NaN if no class occurs.
    """
    of_classes = class_iou(means)
    occurs = ~np.isnan(of_classes)
    n = occurs.sum(-1)
    return np.asarray(np.where(occurs, of_classes, 0).sum(-1) / np.where(n > 0, n, np.nan))


def best_overlap(cells: list[np.ndarray]) -> int:
    """Find the index of the cell with the best mean IoU, of those defined in enough images.

    Args:
        cells: overlaps of the validation samples in each cell, (3, class, validation sample).
    """
    counts = np.array([np.isfinite(one).all((0, 1)).sum() for one in cells])
    scores = np.array([_mean_iou_of(one) for one in cells])
    return int(np.where(enough_defined(counts), scores, -np.inf).argmax())


def class_map_records(
    run: Run, labels: LabelSet, is_test: np.ndarray, bootstrap: Bootstrap
) -> dict[str, ClassMapRecord]:
    """Build the records of a run's class maps by name, if all their classes are probed.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        is_test: whether each held-out sample is a test sample, (held-out sample,) bool.
        bootstrap: bootstrap over the test samples.
    """
    return {
        name: _class_map_record(JointProbes(run, labels, is_test, parts), bootstrap)
        for name, parts in joint_properties(run.study.labels.maps, "classes").items()
    }


@dataclass(frozen=True)
class _Input:
    """Overlaps of predicted and labeled classes at each step, for one layer or input control.

    The *cell* is the step with the best mean IoU on validation samples.

    Attributes:
        step: step of the cell, from 1.
        steps: overlaps of the test samples at every step, (step, 3, class, test sample).
        validation: overlaps of the validation samples in the cell, (3, class, validation sample).
        exact: overlaps of the cell with ground-truth maps; None without ground-truth maps.
    """

    step: int
    steps: np.ndarray
    validation: np.ndarray
    exact: np.ndarray | None

    @property
    def best(self) -> np.ndarray:
        """Overlaps of the test samples at the best step, (3, class, test sample)."""
        return np.asarray(self.steps[self.step - 1])


def _predicted(
    probes: JointProbes, layer: str, truth: np.ndarray, exact: np.ndarray | None
) -> _Input:
    """Predict classes from one probe input at every step, and choose the best step."""
    is_test = probes.is_test
    overlaps, on_exact = [], []
    for tokens in probes.tokens(layer):
        overlaps.append(overlap(tokens, truth))
        if exact is not None:
            on_exact.append(overlap(tokens[is_test], exact))
    best = best_overlap([of_step[..., ~is_test] for of_step in overlaps])
    return _Input(
        step=best + 1,
        steps=np.stack([of_step[..., is_test] for of_step in overlaps]),
        validation=overlaps[best][..., ~is_test],
        exact=on_exact[best] if on_exact else None,
    )


def _mean_iou_of(overlaps: np.ndarray) -> float:
    """Compute the mean IoU from overlaps (3, class, n); minus infinity if it is undefined."""
    defined = overlaps[..., np.isfinite(overlaps).all((0, 1))]
    if not defined.shape[-1]:
        return -np.inf
    value = float(mean_iou(defined.mean(-1)[None])[0])
    return value if np.isfinite(value) else -np.inf


def _class_map_record(probes: JointProbes, bootstrap: Bootstrap) -> ClassMapRecord:
    """Build a class map's record: test scores of its best layer and step, and of its controls."""
    run, is_test = probes.run, probes.is_test
    truth, exact = probes.truth(probes.labels.heldout).astype(np.float64), probes.exact_maps()
    cells = {name: _predicted(probes, name, truth, exact) for name in run.probe_inputs}
    layer = run.layers[best_overlap([cells[name].validation for name in run.layers])]
    best, inputs = cells[layer], [name for name in cells if name not in run.layers]
    # The position baseline predicts the most frequent class of the training samples at each pixel.
    mean = probes.mean_map()
    position = overlap(np.broadcast_to(mean, (int(is_test.sum()), *mean.shape)), truth[is_test])

    def score(name: str) -> ClassMapScore:
        cell = cells[name]
        return ClassMapScore(
            layer=name,
            step=cell.step,
            mean_iou=bootstrap.interval_of(cell.best, mean_iou),
            by_class={
                part: bootstrap.interval_of(cell.best, partial(_iou_of_class, index=index))
                for index, part in enumerate(probes.parts)
            },
        )

    def above(other: np.ndarray) -> Interval:
        return bootstrap.interval_of(paired(best.best, other), _difference)

    return ClassMapRecord(
        components=list(probes.parts),
        kind=probes.kind,
        best=score(layer),
        steps=[bootstrap.interval_of(overlaps, mean_iou) for overlaps in best.steps],
        position=bootstrap.interval_of(position, mean_iou),
        above_position=above(position),
        inputs={name: score(name) for name in inputs},
        above_inputs={name: above(cells[name].best) for name in inputs},
        partial_inputs=partial_inputs(run, probes.labels.heldout),
        exact=_exact_scores(probes, best, truth[is_test], exact, bootstrap),
    )


def paired(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Stack overlaps of two predictions, without the samples in which either is undefined.

    An input control may be defined in some images alone.  Means over other images than those of
    the control would differ from it even where its predictions are equal.

    Args:
        first, second: overlaps (3, class, sample).

    Returns:
        (2, 3, class, sample); NaN for samples that are left out.
    """
    both = np.stack([first, second])
    return np.where(np.isfinite(both).all((0, 1, 2)), both, np.nan)


def _iou_of_class(means: np.ndarray, index: int) -> np.ndarray:
    """Compute the IoU of one class, (draw,), from mean overlaps (draw, 3, class)."""
    return np.asarray(class_iou(means)[:, index])


def _difference(means: np.ndarray) -> np.ndarray:
    """Subtract the second mean IoU from the first, (draw,), from overlaps (draw, 2, 3, class)."""
    return mean_iou(means[:, 0]) - mean_iou(means[:, 1])


def _exact_scores(
    probes: JointProbes,
    best: _Input,
    labels: np.ndarray,
    exact: np.ndarray | None,
    bootstrap: Bootstrap,
) -> ClassMapExact | None:
    """Score predictions of test samples on ground-truth maps; None if the run has no such maps."""
    if exact is None or best.exact is None:
        return None
    mean = np.broadcast_to(probes.mean_map(), exact.shape)
    labeler = bootstrap.interval_of(overlap(labels, exact), mean_iou)
    return ClassMapExact(
        best=bootstrap.interval_of(best.exact, mean_iou),
        position=bootstrap.interval_of(overlap(mean, exact), mean_iou),
        labeler=labeler if probes.has_labeler else None,
    )
