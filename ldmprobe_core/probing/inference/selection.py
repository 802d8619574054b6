"""Choice of the best cell, and of the layer whose score curve over the steps is reported.

The choice is by mean validation scores.  A score may be undefined in some images, and a mean over
few of them, or over easy ones, is not comparable with a mean over all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.probing.metrics import mean_of_defined


@dataclass(frozen=True)
class LayerChoice:
    """Layer chosen among several, and the layers that are tied with it.

    Attributes:
        layer: index of the chosen layer.
        tied: indices of all layers within one standard error of the best, best first.
    """

    layer: int
    tied: tuple[int, ...]


def enough_defined(counts: np.ndarray, at_least: int = 1) -> np.ndarray:
    """Flag the cells that are defined in enough images for a choice between them.

    These are at least half as many as in the cell that is defined in most.

    Args:
        counts: number of validation images, or of their prompts, in which each cell is defined, of
            any shape.
        at_least: smallest number that is enough; the cell that is defined in most images has enough
            in any case.

    Returns:
        bool, of the same shape; False for a cell that is defined in none.
    """
    most = counts.max(initial=0)
    return np.asarray((counts > 0) & (counts >= min(most, max(at_least, most / 2))))


def ranked_means(scores: np.ndarray) -> np.ndarray:
    """Average the scores of each cell, for the choice of the best cell.

    Args:
        scores: validation scores, or test scores of probes of permuted labels, (..., sample); NaN
            if undefined.

    Returns:
        mean of the defined scores, (...); -inf for a cell that is not `enough_defined`.
    """
    means = mean_of_defined(scores, otherwise=-np.inf)
    return np.where(enough_defined(np.isfinite(scores).sum(-1)), means, -np.inf)


def choose_layer(scores: np.ndarray, groups: np.ndarray) -> LayerChoice:
    """Choose the layer whose validation score, averaged over steps and prompts, is best.

    Choosing the best layer separately at each step would give a curve of maxima, whose dips are
    accidents of a few validation samples.  Layers within one standard error of the best are
    reported as ties (the one-standard-error rule of Breiman et al. 1984, Classification and
    Regression Trees, section 3.4.3).

    A sample counts for a layer only if its scores are defined there at every step.  A layer without
    scores at steps that are hard to read would otherwise have a better mean.  Only if there is no
    such sample for any layer, means are over the defined steps.

    Layers that are not `enough_defined` are not chosen.  The others are compared over the samples
    that count for all of them, if these are enough, else over their own.

    Args:
        scores: validation scores (step, layer, sample); NaN if undefined.
        groups: prompt of each sample, (sample,); samples of one prompt are not independent.
    """
    defined = np.isfinite(scores)
    with np.errstate(invalid="ignore"):
        by_sample = np.where(defined, scores, 0).sum(0) / defined.sum(0)
    complete = defined.all(0)
    if complete.any():
        by_sample[~complete] = np.nan
    counted = np.isfinite(by_sample)
    n_counted = counted.sum(1)
    candidates = enough_defined(n_counted)
    by_sample[~candidates] = np.nan
    common = counted[candidates].all(0)
    if enough_defined(np.append(n_counted, common.sum()))[-1]:
        by_sample[:, ~common] = np.nan
    by_cluster = cluster_means(by_sample, groups)
    mean = mean_of_defined(by_cluster, otherwise=-np.inf)
    best = int(mean.argmax())
    values = by_cluster[best][np.isfinite(by_cluster[best])]
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    order = np.argsort(-mean, kind="stable")
    return LayerChoice(best, tuple(int(i) for i in order if mean[i] >= mean[best] - error))


def cluster_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Average the defined values of each cluster, (..., cluster); NaN if a cluster has none.

    Args:
        values: (..., sample); NaN if undefined.
        groups: cluster of each sample, (sample,).
    """
    _, member = np.unique(groups, return_inverse=True)
    one_hot = np.equal.outer(member, np.arange(member.max(initial=-1) + 1)).astype(np.float64)
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return (np.where(defined, values, 0) @ one_hot) / (defined @ one_hot)
