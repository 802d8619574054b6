"""Fitting and scoring of every probe and control of one (step, layer)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.probing.fitters.base import CellData, FitData, Probe
from ldmprobe_core.probing.fitters.registry import FITTERS
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import predictions
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.schema import Study

_Probes = dict[tuple[str, str], Probe]


@dataclass(frozen=True)
class CellResult:
    """Probes and scores of a cell under one label assignment.

    Attributes:
        probes: (kind, property) to probe.
        scores: property to (kind, metric, held-out sample) float32; NaN where the kind does not
            support the property or the score is undefined.
    """

    probes: dict[tuple[str, str], Probe]
    scores: dict[str, np.ndarray]


def probe_activations(
    activations: np.ndarray,
    labels: LabelSet,
    study: Study,
    assignments: tuple[str, ...] = ("true",),
    statistics: SufficientStatistics | None = None,
) -> dict[str, CellResult]:
    """Fit every probe of a cell and score it on the held-out samples.

    A sample with a non-finite activation is excluded from training, and its scores are NaN; the
    summary counts them.

    Args:
        activations: (sample, y, x, channel) float16.
        labels: label maps and splits of the same samples.
        study: its probe kinds, penalties and prompt seed are used.
        assignments: names of label assignments: ``true``, and ``shuffled`` for the shuffled-label
            control.
        statistics: sufficient statistics of training samples that are not in `activations`; label
            columns ordered by (assignment, property).

    Returns:
        Probes and scores by label assignment; no probes and NaN scores if the cell has no usable
        training or validation samples.
    """
    finite = np.isfinite(activations).reshape(len(activations), -1).all(1)
    train = labels.train[finite[labels.train]]
    validation = labels.validation[finite[labels.validation]]
    probes: dict[str, _Probes] = {assignment: {} for assignment in assignments}
    if (statistics.n if statistics else len(train)) and len(validation):
        columns = [(assignment, prop) for assignment in assignments for prop in labels.maps]
        data = CellData(
            activations, labels, train, validation, columns,
            study.probes.penalties, study.prompts.seed, statistics,
        )  # fmt: skip
        _fit(data, study.kinds, probes)
    return _score_heldout(activations, finite, labels, study, probes)


def _fit(data: CellData, kinds: tuple[str, ...], probes: dict[str, _Probes]) -> None:
    """Fit every kind to every label that it supports, and add the probes to `probes`."""
    for name, fitter in FITTERS.items():
        if name not in kinds:
            continue
        for column, (assignment, prop) in enumerate(data.columns):
            # Nonlinear kinds are controls themselves, so they get no shuffled-label control.
            if fitter.kind.supports(property_of(prop)) and (
                fitter.kind.linear or assignment == "true"
            ):
                probes[assignment][name, prop] = fitter.fit(FitData(data, column))


def _score_heldout(
    activations: np.ndarray,
    finite: np.ndarray,
    labels: LabelSet,
    study: Study,
    probes: dict[str, _Probes],
) -> dict[str, CellResult]:
    """Score every probe on the held-out samples; all linear probes predict in one pass."""
    heldout, usable = activations[labels.heldout], finite[labels.heldout]
    heldout[~usable] = 0
    linear = {
        (assignment, (kind, prop)): probe
        for assignment, fitted in probes.items()
        for (kind, prop), probe in fitted.items()
        if probe_kind(kind).linear
    }
    predicted = {}
    if linear:
        stacked = predictions(heldout, list(linear.values()))  # type: ignore[arg-type]
        predicted = {key: stacked[..., i] for i, key in enumerate(linear)}
    results = {}
    for assignment, fitted in probes.items():
        scores = {}
        for prop in labels.maps:
            record = property_of(prop)
            scorer = labels.scorer(prop, activations.shape[1:3])
            shape = (len(study.kinds), len(record.metrics), len(heldout))
            rows = np.full(shape, np.nan, np.float32)
            for row, kind in zip(rows, study.kinds, strict=True):
                if (kind, prop) not in fitted:
                    continue
                tokens = predicted.get((assignment, (kind, prop)))
                if tokens is None:
                    tokens = fitted[kind, prop].predict(heldout)
                if record.is_mask:
                    tokens = tokens > probe_kind(kind).mask_threshold
                row[:] = np.where(usable, scorer.scores(tokens), np.nan)
            scores[prop] = rows
        results[assignment] = CellResult(fitted, scores)
    return results
