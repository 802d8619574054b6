"""Choice of the layer whose score curve over the steps is reported."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerChoice:
    """Layer chosen among several, and the layers that are tied with it.

    Attributes:
        layer: index of the chosen layer.
        tied: indices of all layers within one standard error of the best, best first.
    """

    layer: int
    tied: tuple[int, ...]


def choose_layer(scores: np.ndarray, groups: np.ndarray) -> LayerChoice:
    """Choose the layer whose validation score, averaged over steps and prompts, is best.

    Choosing the best layer separately at each step would give a curve of maxima, whose dips are
    accidents of a few validation samples.  Layers within one standard error of the best are
    reported as ties (the one-standard-error rule of Breiman et al. 1984, Classification and
    Regression Trees, section 3.4.3).

    A sample counts for a layer only if its scores are defined there at every step.  A layer without
    scores at steps that are hard to read would otherwise have a better mean.  Only if there is no
    such sample for any layer, means are over the defined steps.

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
    by_cluster = cluster_means(by_sample, groups)
    usable = np.isfinite(by_cluster)
    count = usable.sum(1)
    mean = np.full(len(by_cluster), -np.inf)
    some = count > 0
    mean[some] = np.where(usable, by_cluster, 0).sum(1)[some] / count[some]
    best = int(mean.argmax())
    values = by_cluster[best][usable[best]]
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
