"""Fitting and scoring of all probes of one cell, that is, one layer at one step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ldmprobe_core.probing.detection import best_cut
from ldmprobe_core.probing.fitters.base import CellData, FitData, Probe
from ldmprobe_core.probing.fitters.registry import FITTERS
from ldmprobe_core.probing.inference.selection import ranked_means
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe, finite_samples, predictions
from ldmprobe_core.probing.metrics import mean_of_defined
from ldmprobe_core.probing.ranks import flatten_maps
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.conditions import LabelColumn
from ldmprobe_core.study.probe_kinds import ProbeKind, probe_kind
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.schema import Study

_Fitted = dict[tuple[str, LabelColumn], Probe]
"""Fitted probes of a layer at a step, by kind of probe and label."""


@dataclass(frozen=True)
class CellResult:
    """Probes and scores of one layer at one step, for one assignment of labels (true or shuffled).

    Attributes:
        probes: fitted probes, by (kind, property), for the first draw of a repeated assignment; the
            linear probes of masks have their cut.
        scores: arrays (kind, metric, held-out sample) float32, by property; NaN if the kind does
            not support the property or the score is undefined.  For a repeated assignment, they are
            means over its draws, in the metrics that `Property.compared` lists.
        draws: scores of each draw of a repeated assignment in the main metric, (draw, held-out
            sample) float32, by property; of the kinds of probes that are fitted to all draws, those
            of the best on validation samples.  Empty for other assignments.
    """

    probes: dict[tuple[str, str], Probe]
    scores: dict[str, np.ndarray]
    draws: dict[str, np.ndarray] = field(default_factory=dict)

    def spread(self, rows: np.ndarray) -> CellResult:
        """Expand the scores to all held-out samples, with NaN for samples that were not scored.

        Args:
            rows: bool (held-out sample,), True at the samples of this result.
        """

        def wider(scores: np.ndarray) -> np.ndarray:
            full = np.full((*scores.shape[:-1], len(rows)), np.nan, scores.dtype)
            full[..., rows] = scores
            return full

        scores = {prop: wider(values) for prop, values in self.scores.items()}
        return replace(self, scores=scores, draws={p: wider(v) for p, v in self.draws.items()})


def probe_activations(
    activations: np.ndarray,
    labels: LabelSet,
    study: Study,
    columns: tuple[LabelColumn, ...] | None = None,
    statistics: SufficientStatistics | None = None,
    train: np.ndarray | None = None,
    headline_only: bool = False,
) -> dict[str, CellResult]:
    """Fit all probes of one layer at one step, and score them on the held-out samples.

    A sample with a non-finite activation is not used for fitting, and its scores are NaN.  The
    run's summary reports the number of non-finite values.

    Args:
        activations: (sample, y, x, channel) as stored.
        labels: label maps and splits of the same samples.
        study: study of the run; it gives the probe kinds, the penalties and the seed.
        columns: labels to fit; None fits all labels of the trained network.
        statistics: sufficient statistics of the training samples, for a run that does not store
            their activations; its label columns are `columns`.
        train: indices of the samples to which probes are fitted, (n,); None takes all training
            samples.
        headline_only: whether to compute scores in the property's main metric alone; those in
            others are NaN.

    Returns:
        Probes and scores by label assignment.  Without usable training or validation samples, there
        are no probes and all scores are NaN.
    """
    columns = columns or study.label_columns("trained")
    finite = finite_samples(activations)
    train = labels.train if train is None else train
    train = train[finite[train]]
    validation = labels.validation[finite[labels.validation]]
    fitted: _Fitted = {}
    if (statistics.n if statistics else len(train)) and len(validation):
        data = CellData(
            activations, labels, train, validation, columns,
            study.probes.penalties, study.prompts.seed, statistics,
        )  # fmt: skip
        fitted = _fit(data, study.kinds)
        cuts = _choose_cuts(data, fitted)
    else:
        cuts = {}
    scores = _score_heldout(activations, finite, labels, fitted, cuts, headline_only)
    return {
        assignment: _collect(assignment, columns, study, labels, fitted, scores)
        for assignment in dict.fromkeys(column.assignment for column in columns)
    }


def _fit(data: CellData, kinds: tuple[str, ...]) -> _Fitted:
    """Fit a probe of every kind to every label that the kind supports."""
    fitted: _Fitted = {}
    for name, fitter in FITTERS.items():
        if name not in kinds:
            continue
        for index, column in enumerate(data.columns):
            if fitter.kind.supports(property_of(column.prop)) and _is_fitted(fitter.kind, column):
                fitted[name, column] = fitter.fit(FitData(data, index, fitter.kind))
    return fitted


def _is_fitted(kind: ProbeKind, column: LabelColumn) -> bool:
    """Return whether a kind of probe is fitted to a label column (true labels or shuffled ones).

    Nonlinear kinds are controls themselves, so they are fitted to true labels only.  Draws after
    the first are fitted only by kinds that need just the sufficient statistics, because all draws
    share these.
    """
    if column.draw:
        return kind.from_statistics
    return kind.linear or column.assignment == "true"


def _choose_cuts(data: CellData, fitted: _Fitted) -> dict[tuple[str, LabelColumn], float]:
    """Choose the foreground threshold (cut) of each probe that predicts a mask.

    The cut is chosen on the samples and labels that the probe was fitted to, or on the validation
    samples if the run does not store the training samples.
    """
    of_masks = {key: probe for key, probe in fitted.items() if property_of(key[1].prop).is_mask}
    fixed = {key: probe_kind(key[0]).fixed_cut for key in of_masks}
    cuts = {key: cut for key, cut in fixed.items() if cut is not None}
    tuned = {key: probe for key, probe in of_masks.items() if key not in cuts}
    if tuned:
        members = data.train if len(data.train) else data.validation
        for key, tokens in _predict(data.activations[members], tuned).items():
            column = key[1]
            index = data.columns.index(column)
            owners = data.label_owners(members, index)
            shares = flatten_maps(data.labels.tokens(column.prop, data.grid)[owners])
            weights = data.token_weights(index, members)
            cuts[key] = best_cut(
                flatten_maps(tokens), shares, None if weights is None else flatten_maps(weights)
            )
    for key, cut in cuts.items():
        probe = fitted[key]
        if isinstance(probe, LinearProbe):
            fitted[key] = replace(probe, cut=cut)
    return cuts


def _predict(activations: np.ndarray, probes: _Fitted) -> dict[tuple[str, LabelColumn], np.ndarray]:
    """Predict maps (n, y, x) with every probe.

    All linear probes predict in one pass over the activations, which is faster than one pass each.
    """
    linear = [key for key in probes if probe_kind(key[0]).linear]
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
    fitted: _Fitted,
    cuts: dict[tuple[str, LabelColumn], float],
    headline_only: bool,
) -> dict[tuple[str, LabelColumn], np.ndarray]:
    """Score every probe on the held-out samples; `cuts` contains the foreground thresholds.

    Returns:
        (metric, held-out sample) by kind and label; NaN in metrics that are not computed, and on
        test samples whose labels are all one constant.
    """
    heldout, usable = activations[labels.heldout], finite[labels.heldout]
    heldout[~usable] = 0
    repeated = {column.assignment for _, column in fitted if column.draw}
    scores = {}
    for key, tokens in _predict(heldout, fitted).items():
        column = key[1]
        record = property_of(column.prop)
        scorer = labels.scorer(column.prop, activations.shape[1:3])
        # To save time, compute only the metrics that are reported.  For labels that are shuffled
        # several times, these are only the metrics in `Property.compared`.
        metrics = record.compared if column.assignment in repeated else record.metrics
        metrics = metrics[:1] if headline_only else metrics
        values = scorer.scores(tokens, cuts.get(key), metrics)
        scores[key] = np.where(usable, values, np.nan)
        if labels.constant(column.prop) is not None:
            scores[key][:, np.isin(labels.heldout, labels.test)] = np.nan
    return scores


def _collect(
    assignment: str,
    columns: tuple[LabelColumn, ...],
    study: Study,
    labels: LabelSet,
    fitted: _Fitted,
    scores: dict[tuple[str, LabelColumn], np.ndarray],
) -> CellResult:
    """Collect the probes and scores of one label assignment (such as true or shuffled labels).

    These are the probes of its first draw and the scores of all its draws.
    """
    probes = {
        (kind, column.prop): probe
        for (kind, column), probe in fitted.items()
        if column.assignment == assignment and column.draw == 0
    }
    means, by_draw = {}, {}
    for prop in labels.maps:
        draws = [c for c in columns if c.assignment == assignment and c.prop == prop]
        shape = len(study.kinds), len(property_of(prop).metrics), len(labels.heldout)
        means[prop] = np.full(shape, np.nan, np.float32)
        for row, kind in zip(means[prop], study.kinds, strict=True):
            rows = [scores[kind, column] for column in draws if (kind, column) in scores]
            if rows:
                row[:] = mean_of_defined(np.stack(rows), axis=0)
        if draws and assignment != "true":
            by_draw[prop] = np.full((len(draws), shape[-1]), np.nan, np.float32)
            kinds = [kind for kind in study.kinds if (kind, draws[-1]) in scores]
            for row, column in zip(by_draw[prop], draws, strict=True):
                if kinds:
                    row[:] = _best_kind(np.stack([scores[k, column][0] for k in kinds]), labels)
    return CellResult(probes, means, by_draw)


def _best_kind(scores: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Choose the row of the kind with the best mean validation score, as for the true labels.

    Args:
        scores: scores of one draw by kind, (kind, held-out sample).
        labels: labels that were scored.
    """
    on_validation = scores[:, np.isin(labels.heldout, labels.validation)]
    return scores[ranked_means(on_validation).argmax()]
