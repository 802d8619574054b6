"""Control that scores a probe's maps against the labels of other images of the same prompt.

A probe that reads only what the words say predicts the same map for all images of a prompt.  Its
map of one image then fits the labels of the other images as well as that image's own label, and
the expected difference of the two scores is zero.  Unlike a regression from the prompt's embedding,
this control learns nothing, so a small number of training prompts does not weaken it.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.block_scores import BlockScorer
from ldmprobe_core.probing.inference.bootstrap import MINIMUM_CLUSTERS
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.metrics import mean_of_defined
from ldmprobe_core.storage.run import Run

MOST_PARTNERS = 4
"""Largest number of other images against whose labels one map is scored."""


def same_prompt_scores(
    predicted: np.ndarray,
    cut: float | None,
    labels: LabelSet,
    prop: str,
    members: np.ndarray,
    prompts: np.ndarray,
) -> np.ndarray | None:
    """Score predictions against the labels of other images of the same prompt.

    Args:
        predicted: predictions of samples, (n, *grid); for a mask, values on any scale.  A sample
            with a value that is not finite gets NaN.
        cut: value above which the prediction of a mask counts as foreground; not used for other
            properties.
        labels: label maps.
        prop: name of the property.
        members: indices of the samples, (n,).
        prompts: prompt of each of them, (n,).

    Returns:
        mean over at most `MOST_PARTNERS` other images, (metric, n) float64; NaN for an image whose
        prompt has no other.  None if fewer than `MINIMUM_CLUSTERS` prompts have several images.
    """
    names, counts = np.unique(prompts, return_counts=True)
    if (counts > 1).sum() < MINIMUM_CLUSTERS:
        return None
    usable, predicted = np.isfinite(predicted).all((1, 2)), np.nan_to_num(predicted)
    scores = []
    for shift in range(1, min(int(counts.max()), MOST_PARTNERS + 1)):
        partner = np.arange(len(members))
        for name in names[counts > shift]:
            group = np.flatnonzero(prompts == name)
            partner[group] = np.roll(group, -shift)
        scorer = BlockScorer(
            prop,
            labels.maps[prop],
            labels.means[prop],
            predicted.shape[1:3],
            labels.full(prop),
            members[partner],
        )
        scored = usable & (partner != np.arange(len(members)))
        scores.append(np.where(scored, scorer.scores(predicted, cut), np.nan))
    return mean_of_defined(np.stack(scores), axis=0)


def read_same_prompt_scores(
    run: Run, prop: str, labels: LabelSet, test: np.ndarray, cell: tuple[str, int, str]
) -> np.ndarray | None:
    """Score a stored probe against the labels of other test images of the same prompt.

    Args:
        run: finished run.
        prop: name of the property.
        labels: label maps of the run.
        test: indices of the test samples, (test sample,).
        cell: kind of a linear probe, step (from 1) and name of the layer.

    Returns:
        (metric, test sample) float64, as `same_prompt_scores` returns it; NaN too for a sample with
        non-finite activations.
    """
    kind, step, layer = cell
    stored = run.open(f"probes/{layer}").sel(kind=kind, property=prop, step=step).load()
    probe = LinearProbe.from_dataset(stored)
    tokens = run.read(f"activations/{layer}", "activation", step=step - 1, sample=test)
    # Samples with non-finite activations get undefined predictions, and therefore the score NaN.
    with np.errstate(invalid="ignore"):
        predicted = probe.predict(tokens)
    prompts = np.array([run.samples[i].group for i in test])
    return same_prompt_scores(predicted, probe.cut, labels, prop, test, prompts)
