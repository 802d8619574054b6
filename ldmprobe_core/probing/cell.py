"""Fitting and scoring of all probes of one cell, that is, one layer at one step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ldmprobe_core.probing.detection import best_cut
from ldmprobe_core.probing.fitters.base import CellData, FitData, Probe
from ldmprobe_core.probing.fitters.registry import FITTERS
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe, predictions
from ldmprobe_core.probing.ranks import flatten_maps
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.schema import Study

_Probes = dict[tuple[str, str], Probe]

_Key = tuple[str, str, str]
"""Label assignment, kind and property of a probe."""


@dataclass(frozen=True)
class CellResult:
    """Probes and scores of one cell, for true labels or for shuffled labels.

    Attributes:
        probes: fitted probes, by (kind, property); the linear probes of masks have their cut.
        scores: arrays (kind, metric, held-out sample) float32, by property; NaN if the kind does
            not support the property or the score is undefined.
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

    A sample with a non-finite activation is not used for fitting, and its scores are NaN.  The
    run's summary reports the number of non-finite values.

    Args:
        activations: (sample, y, x, channel) float16.
        labels: label maps and splits of the same samples.
        study: study of the run; it gives the probe kinds, the penalties and the seed.
        assignments: names of the label assignments to fit: ``true``, or ``shuffled`` for the
            control with shuffled labels.
        statistics: sufficient statistics of the training samples, for a run that does not store
            their activations; its label columns are ordered by (assignment, property).

    Returns:
        Probes and scores by label assignment.  Without usable training or validation samples, there
        are no probes and all scores are NaN.
    """
    finite = np.isfinite(activations).reshape(len(activations), -1).all(1)
    train = labels.train[finite[labels.train]]
    validation = labels.validation[finite[labels.validation]]
    probes: dict[str, _Probes] = {assignment: {} for assignment in assignments}
    cuts: dict[_Key, float] = {}
    if (statistics.n if statistics else len(train)) and len(validation):
        columns = [(assignment, prop) for assignment in assignments for prop in labels.maps]
        data = CellData(
            activations, labels, train, validation, columns,
            study.probes.penalties, study.prompts.seed, statistics,
        )  # fmt: skip
        _fit(data, study.kinds, probes)
        cuts = _choose_cuts(data, probes)
        for (assignment, kind, prop), cut in cuts.items():
            probe = probes[assignment][kind, prop]
            if isinstance(probe, LinearProbe):
                probes[assignment][kind, prop] = replace(probe, cut=cut)
    return _score_heldout(activations, finite, labels, study, probes, cuts)


def _fit(data: CellData, kinds: tuple[str, ...], probes: dict[str, _Probes]) -> None:
    """Fit probes of every kind to every label that the kind supports, and add them to `probes`."""
    for name, fitter in FITTERS.items():
        if name not in kinds:
            continue
        for column, (assignment, prop) in enumerate(data.columns):
            # Nonlinear kinds are controls themselves, so they get no shuffled-label control.
            if fitter.kind.supports(property_of(prop)) and (
                fitter.kind.linear or assignment == "true"
            ):
                probes[assignment][name, prop] = fitter.fit(FitData(data, column))


def _choose_cuts(data: CellData, probes: dict[str, _Probes]) -> dict[_Key, float]:
    """Choose the cut of every probe of a mask, the value above which a token is foreground.

    The cut is chosen on the samples and labels that the probe was fitted to, or on the validation
    samples if the run does not store the training samples.
    """
    columns = {key: i for i, key in enumerate(data.columns) if property_of(key[1]).is_mask}
    of_masks = {
        (assignment, kind, prop): probe
        for assignment, fitted in probes.items()
        for (kind, prop), probe in fitted.items()
        if (assignment, prop) in columns
    }
    fixed = {key: probe_kind(key[1]).fixed_cut for key in of_masks}
    cuts = {key: cut for key, cut in fixed.items() if cut is not None}
    tuned = {key: probe for key, probe in of_masks.items() if key not in cuts}
    if not tuned:
        return cuts
    members = data.train if len(data.train) else data.validation
    for key, tokens in _predict(data.activations[members], tuned).items():
        assignment, _, prop = key
        owners = data.label_owners(members, assignment)
        shares = flatten_maps(data.labels.tokens(prop, data.grid)[owners])
        weights = data.token_weights(columns[assignment, prop], members)
        cuts[key] = best_cut(
            flatten_maps(tokens), shares, None if weights is None else flatten_maps(weights)
        )
    return cuts


def _predict(activations: np.ndarray, probes: dict[_Key, Probe]) -> dict[_Key, np.ndarray]:
    """Return the predictions of every probe, (n, y, x) each.

    All linear probes predict in one pass over the activations, which is faster than one pass each.
    """
    linear = [key for key in probes if probe_kind(key[1]).linear]
    predicted = {}
    if linear:
        stacked = predictions(activations, [probes[key] for key in linear])  # type: ignore[misc]
        predicted = {key: stacked[..., i] for i, key in enumerate(linear)}
    others = {key: probe for key, probe in probes.items() if key not in predicted}
    return predicted | {key: probe.predict(activations) for key, probe in others.items()}


def _score_heldout(
    activations: np.ndarray,
    finite: np.ndarray,
    labels: LabelSet,
    study: Study,
    probes: dict[str, _Probes],
    cuts: dict[_Key, float],
) -> dict[str, CellResult]:
    """Score every probe on the held-out samples; predictions of masks are cut at `cuts`."""
    heldout, usable = activations[labels.heldout], finite[labels.heldout]
    heldout[~usable] = 0
    predicted = _predict(
        heldout,
        {
            (assignment, kind, prop): probe
            for assignment, fitted in probes.items()
            for (kind, prop), probe in fitted.items()
        },
    )
    results = {}
    for assignment, fitted in probes.items():
        scores = {}
        for prop in labels.maps:
            record = property_of(prop)
            scorer = labels.scorer(prop, activations.shape[1:3])
            shape = (len(study.kinds), len(record.metrics), len(heldout))
            rows = np.full(shape, np.nan, np.float32)
            for row, kind in zip(rows, study.kinds, strict=True):
                key = assignment, kind, prop
                if key in predicted:
                    row[:] = np.where(usable, scorer.scores(predicted[key], cuts.get(key)), np.nan)
            scores[prop] = rows
        results[assignment] = CellResult(fitted, scores)
    return results
