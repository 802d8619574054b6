"""Jackknife correction of score differences (probe minus control) for small training sets.

Probes of a control may have many more channels than probes of a layer: a neighbourhood of 5 x 5
latents has 100 at four channels each.  From few training samples they are estimated less precisely,
so a control that holds the same information scores less.  Such a loss falls about as 1/n with the
number n of training samples, and the delete-half jackknife removes it (Quenouille 1949):

    difference without the loss = 2 x difference(n) - mean difference(n / 2).

A difference also depends on which images were drawn for training, which resamples of the test
samples do not show.  The variance of the mean difference over the halves estimates that part of its
variance (the delete-d jackknife of Shao & Wu 1989, with d = n / 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.probing.cell import probe_activations
from ldmprobe_core.probing.inference.bootstrap import MINIMUM_CLUSTERS
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.study.conditions import LabelColumn
from ldmprobe_core.study.schema import Study

DIVISIONS = 5
"""Number of random divisions of the training prompts into two halves."""


@dataclass(frozen=True)
class CorrectedDifference:
    """Score difference (probe minus control), corrected for the small number of training samples.

    Attributes:
        values: difference of the scores of each test sample, (test sample,).
        error: standard error of the mean difference that the choice of training samples causes.
    """

    values: np.ndarray
    error: float


def training_halves(train: np.ndarray, prompts: np.ndarray, seed: int) -> list[np.ndarray]:
    """Split training samples `DIVISIONS` times into random halves that share no prompt.

    Args:
        train: indices of the training samples, (n,).
        prompts: prompt of every sample, (sample,).
        seed: seed of the random divisions.

    Returns:
        indices of the samples of each half, two for each of `DIVISIONS`; empty if a half would have
        fewer than `MINIMUM_CLUSTERS` prompts.
    """
    names = np.unique(prompts[train])
    if len(names) < 2 * MINIMUM_CLUSTERS:
        return []
    rng, halves = np.random.default_rng(seed), []
    for _ in range(DIVISIONS):
        first = np.isin(prompts[train], rng.permutation(names)[: len(names) // 2])
        halves += [train[first], train[~first]]
    return halves


def scores_of_halves(
    activations: np.ndarray,
    labels: LabelSet,
    study: Study,
    probe: tuple[str, str],
    halves: list[np.ndarray],
) -> np.ndarray:
    """Fit a probe to each half of the training samples, and score it in the main metric.

    The position term stays that of all training samples, for the probe and the control alike.

    Args:
        activations: activations of all samples in a cell, (sample, y, x, channel) as stored.
        labels: label maps and splits of the same samples.
        study: study of the run.
        probe: kind of the probe, and name of the property.
        halves: result of `training_halves`.

    Returns:
        (half, held-out sample) float64.
    """
    kind, prop = probe
    alone = study.model_copy(
        update={
            "probes": study.probes.model_copy(update={"kinds": (kind,)}),
            "controls": study.controls.model_copy(update={"mlp": False}),
        }
    )
    columns = (LabelColumn("true", prop),)
    results = [
        probe_activations(activations, labels, alone, columns, train=half, headline_only=True)[
            "true"
        ]
        for half in halves
    ]
    return np.stack([result.scores[prop][0, 0] for result in results]).astype(np.float64)


def corrected_difference(difference: np.ndarray, of_halves: np.ndarray) -> CorrectedDifference:
    """Correct a score difference (probe minus control) for small training sets, by the jackknife.

    The loss from few samples is larger where a control has more channels, and is extrapolated from
    probes that are fitted to half of the samples.

    Args:
        difference: scores of the probe minus those of the control, (test sample,).
        of_halves: the same with probe and control fitted to each half of the training samples,
            (half, test sample).
    """
    defined = np.isfinite(of_halves).all(0) & np.isfinite(difference)
    values = np.where(defined, 2 * difference - of_halves.mean(0), np.nan)
    error = float(of_halves[:, defined].mean(1).std()) if defined.any() else 0.0
    return CorrectedDifference(values, error)
