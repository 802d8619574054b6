"""Probing one cell: every probe and control of one (step, layer), from one read of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.probing.baselines import shuffle_within
from ldmprobe_core.probing.fitters.adam import fit_adam
from ldmprobe_core.probing.fitters.logistic import fit_logistic
from ldmprobe_core.probing.fitters.mlp import TwoLayerProbe, fit_two_layer
from ldmprobe_core.probing.fitters.ridge import RidgePath, fit_ridge
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import Probe, foreground_cut, predictions, serves
from ldmprobe_core.probing.statistics import Moments
from ldmprobe_core.study.properties import METRICS
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import TWO_LAYER

_Probes = dict[tuple[str, str], Probe | TwoLayerProbe]


@dataclass(frozen=True)
class CellResult:
    """Probes and scores of a cell.

    Attributes:
        probes: (kind, property) to probe, fitted on true labels.
        scores: property to (kind, metric, held sample) float32; NaN where the kind does not
            serve the property or the score is undefined.
    """

    probes: dict[tuple[str, str], Probe | TwoLayerProbe]
    scores: dict[str, np.ndarray]


def probe_activations(
    activations: np.ndarray,
    labels: LabelSet,
    study: Study,
    deals: tuple[str, ...] = ("real",),
    sums: Moments | None = None,
) -> dict[str, CellResult]:
    """Fit every probe of a cell and score it on the held-out samples.

    A sample with a non-finite activation takes no part: it is not trained on and its scores are
    NaN, which the summary counts.

    Args:
        activations: (sample, y, x, channel) float16.
        deals: of labels to samples: ``real``; or ``shuffled``, to other images, the control.
        sums: what training samples left that are not among these; labels by deal and property.
    """
    finite = np.isfinite(activations).reshape(len(activations), -1).all(1)
    train = labels.train[finite[labels.train]]
    validation = labels.validation[finite[labels.validation]]
    probes: dict[str, _Probes] = {deal: {} for deal in deals}
    if (sums.n if sums else len(train)) and len(validation):
        _fit(activations, labels, train, validation, study, probes, sums)
    return _scored(activations, finite, labels, study, probes)


def _fit(
    activations: np.ndarray,
    labels: LabelSet,
    train: np.ndarray,
    validation: np.ndarray,
    study: Study,
    probes: dict[str, _Probes],
    sums: Moments | None,
) -> None:
    """Enter every probe of every deal; one pass over the tokens serves all ridge probes."""
    grid = (activations.shape[1], activations.shape[2])
    seed, kinds, penalties = study.prompts.seed, study.kinds, study.probes.penalties
    maps = list(labels.maps)
    columns = [(deal, prop) for deal in probes for prop in maps]

    def owners(members: np.ndarray, deal: str) -> np.ndarray:
        return shuffle_within(members, seed) if deal == "shuffled" else members

    def rows(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = activations[members].reshape(-1, activations.shape[-1])
        y = [labels.tokens(prop, grid)[owners(members, deal)].ravel() for deal, prop in columns]
        return x, np.stack(y, axis=1)

    x, y = rows(train)
    validation_x, validation_y = rows(validation)
    path = RidgePath.of(sums or Moments.of(x, y))
    if "ridge" in kinds:
        fitted = fit_ridge(path, Moments.of(validation_x, validation_y), penalties)
        for (deal, prop), probe in zip(columns, fitted, strict=True):
            probes[deal]["ridge", prop] = probe
    for column, (deal, prop) in enumerate(columns):
        if "logistic" in kinds and serves("logistic", prop):
            probes[deal]["logistic", prop] = fit_logistic(
                x, y[:, column], validation_x, validation_y[:, column], penalties, path, column
            )
        if "adam" in kinds:
            target = labels.maps[prop][owners(train, deal)]
            probes[deal]["adam", prop] = fit_adam(
                activations[train], target, prop == "foreground", seed
            )
        if TWO_LAYER in kinds and deal == "real":
            target = labels.tokens(prop, grid)[train]
            probes[deal][TWO_LAYER, prop] = fit_two_layer(
                activations[train], target, prop == "foreground", seed
            )


def _scored(
    activations: np.ndarray,
    finite: np.ndarray,
    labels: LabelSet,
    study: Study,
    probes: dict[str, _Probes],
) -> dict[str, CellResult]:
    """Every probe's scores on the held-out samples; all linear ones predict in one pass."""
    held, usable = activations[labels.held], finite[labels.held]
    held[~usable] = 0
    names = [(deal, name) for deal, fitted in probes.items() for name in fitted]
    linear = [(d, n) for d, n in names if isinstance(probes[d][n], Probe)]
    predicted = {}
    if linear:
        together = predictions(held, [probes[d][n] for d, n in linear])  # type: ignore[misc]
        predicted = {key: together[..., i] for i, key in enumerate(linear)}
    results = {}
    for deal, fitted in probes.items():
        scores = {}
        for prop in labels.maps:
            truth = labels.truth(prop, activations.shape[1:3])
            rows = np.full((len(study.kinds), len(METRICS[prop]), len(held)), np.nan, np.float32)
            for row, kind in zip(rows, study.kinds, strict=True):
                if (kind, prop) not in fitted:
                    continue
                tokens = predicted.get((deal, (kind, prop)))
                if tokens is None:
                    tokens = fitted[kind, prop].predict(held)
                if prop == "foreground":
                    tokens = tokens > foreground_cut(kind)
                row[:] = np.where(usable, truth.scores(tokens), np.nan)
            scores[prop] = rows
        results[deal] = CellResult(fitted, scores)
    return results
