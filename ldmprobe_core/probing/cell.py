"""Probing one cell: every probe and control of one (step, layer), from one read of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.probing.baselines import derange
from ldmprobe_core.probing.fitters.adam import fit_adam
from ldmprobe_core.probing.fitters.logistic import fit_logistic
from ldmprobe_core.probing.fitters.mlp import MlpProbe, fit_mlp
from ldmprobe_core.probing.fitters.ridge import RidgePath, fit_ridge
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import Probe, decision_threshold, predictions, supports
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.properties import METRICS
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import MLP

_Probes = dict[tuple[str, str], Probe | MlpProbe]


@dataclass(frozen=True)
class CellResult:
    """Probes and scores of a cell.

    Attributes:
        probes: (kind, property) to probe, fitted on true labels.
        scores: property to (kind, metric, held sample) float32; NaN where the kind does not
            serve the property or the score is undefined.
    """

    probes: dict[tuple[str, str], Probe | MlpProbe]
    scores: dict[str, np.ndarray]


def probe_activations(
    activations: np.ndarray,
    labels: LabelSet,
    study: Study,
    assignments: tuple[str, ...] = ("true",),
    sums: SufficientStatistics | None = None,
) -> dict[str, CellResult]:
    """Fit every probe of a cell and score it on the held-out samples.

    A sample with a non-finite activation takes no part: it is not trained on and its scores are
    NaN, which the summary counts.

    Args:
        activations: (sample, y, x, channel) float16.
        assignments: of labels to samples: ``true``; or ``shuffled``, to other images, the control.
        sums: what training samples left that are not among these; labels by assignment and
            property.
    """
    finite = np.isfinite(activations).reshape(len(activations), -1).all(1)
    train = labels.train[finite[labels.train]]
    validation = labels.validation[finite[labels.validation]]
    probes: dict[str, _Probes] = {assignment: {} for assignment in assignments}
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
    sums: SufficientStatistics | None,
) -> None:
    """Enter every probe of every assignment; one pass over the tokens serves all ridge probes."""
    grid = (activations.shape[1], activations.shape[2])
    seed, kinds, penalties = study.prompts.seed, study.kinds, study.probes.penalties
    maps = list(labels.maps)
    columns = [(assignment, prop) for assignment in probes for prop in maps]

    def owners(members: np.ndarray, assignment: str) -> np.ndarray:
        return derange(members, seed) if assignment == "shuffled" else members

    def rows(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = activations[members].reshape(-1, activations.shape[-1])
        y = [
            labels.tokens(prop, grid)[owners(members, assignment)].ravel()
            for assignment, prop in columns
        ]
        return x, np.stack(y, axis=1)

    x, y = rows(train)
    validation_x, validation_y = rows(validation)
    path = RidgePath.from_statistics(sums or SufficientStatistics.from_tokens(x, y))
    if "ridge" in kinds:
        fitted = fit_ridge(
            path, SufficientStatistics.from_tokens(validation_x, validation_y), penalties
        )
        for (assignment, prop), probe in zip(columns, fitted, strict=True):
            probes[assignment]["ridge", prop] = probe
    for column, (assignment, prop) in enumerate(columns):
        if "logistic" in kinds and supports("logistic", prop):
            probes[assignment]["logistic", prop] = fit_logistic(
                x, y[:, column], validation_x, validation_y[:, column], penalties, path, column
            )
        if "adam" in kinds:
            target = labels.maps[prop][owners(train, assignment)]
            probes[assignment]["adam", prop] = fit_adam(
                activations[train], target, prop == "foreground", seed
            )
        if MLP in kinds and assignment == "true":
            target = labels.tokens(prop, grid)[train]
            probes[assignment][MLP, prop] = fit_mlp(
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
    heldout, usable = activations[labels.heldout], finite[labels.heldout]
    heldout[~usable] = 0
    names = [(assignment, name) for assignment, fitted in probes.items() for name in fitted]
    linear = [(d, n) for d, n in names if isinstance(probes[d][n], Probe)]
    predicted = {}
    if linear:
        together = predictions(heldout, [probes[d][n] for d, n in linear])  # type: ignore[misc]
        predicted = {key: together[..., i] for i, key in enumerate(linear)}
    results = {}
    for assignment, fitted in probes.items():
        scores = {}
        for prop in labels.maps:
            truth = labels.scorer(prop, activations.shape[1:3])
            rows = np.full((len(study.kinds), len(METRICS[prop]), len(heldout)), np.nan, np.float32)
            for row, kind in zip(rows, study.kinds, strict=True):
                if (kind, prop) not in fitted:
                    continue
                tokens = predicted.get((assignment, (kind, prop)))
                if tokens is None:
                    tokens = fitted[kind, prop].predict(heldout)
                if prop == "foreground":
                    tokens = tokens > decision_threshold(kind)
                row[:] = np.where(usable, truth.scores(tokens), np.nan)
            scores[prop] = rows
        results[assignment] = CellResult(fitted, scores)
    return results
