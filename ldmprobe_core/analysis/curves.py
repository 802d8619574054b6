"""Score curves of one property over the sampler steps, and the steps at which it emerges."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ldmprobe_core.analysis.records import (
    BarRecord,
    CurveRecord,
    EmergenceRecord,
    LayerRecord,
    LeadRecord,
    LeadsRecord,
    StepRecord,
    UndefinedReason,
)
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.inference.emergence import (
    SHARES,
    Crossing,
    absolute_margins,
    crossing,
    lead_over,
    relative_margins,
)

if TYPE_CHECKING:
    from ldmprobe_core.analysis.generalization.resplits import ResplitCurves

RECALIBRATED = "_recalibrated"
"""Suffix of an image source's name that marks scores of the recalibrated labeler."""

RIVALS = {
    "decoded": "trajectory",
    "clean": "clean",
    "decoded_recalibrated": "trajectory" + RECALIBRATED,
    "clean_recalibrated": "clean" + RECALIBRATED,
}
"""Source of the labeler's images, by the name of the comparison in ``summary.json``."""


@dataclass(frozen=True)
class Curves:
    """Test scores of one property at every step, of probes, controls and image labelers.

    Attributes:
        probe: scores of the probes of one layer and kind, (step, sample).
        conditions: scores of the controls in the same cells, (step, sample) by name of the control.
        sources: scores of the image labeler on the images of each step, (step, sample) by source
            of the images, as it is and recalibrated.
        position: scores of the position baseline, (sample,).
        inputs: scores of probes of the input controls, (step, sample) by name.
        compared: scores of `probe` in the last of the metrics `Property.compared`, (step, sample).
        inputs_compared: scores of the input controls in that metric, (step, sample) by name.
        cells: mean score over test samples of the probes of `kind` in each cell, (step, layer).
        kind: kind of the probe in the best cell.
        layer: layer and kind of `probe`, which are chosen once for all steps.
        resplits: curves of other divisions of the training and validation samples; None if there
            are none.
        decoded: whether each sample has step images, (sample,) bool; the scores of `sources` are
            NaN for the others.
        decoded_steps: steps (from 1) that have step images, ascending.
        other_cells: as `cells`, of the controls, by name.
        partial_cells: as `cells`, in the partial metric; None if the property has none.
        labeled: whether a labeler finds the property in step images; maps that were read from files
            have none, and all scores of `sources` are NaN.
    """

    probe: np.ndarray
    conditions: dict[str, np.ndarray]
    sources: dict[str, np.ndarray]
    position: np.ndarray
    inputs: dict[str, np.ndarray]
    compared: np.ndarray
    inputs_compared: dict[str, np.ndarray]
    cells: np.ndarray
    kind: str
    layer: LayerRecord
    decoded: np.ndarray
    decoded_steps: np.ndarray
    resplits: ResplitCurves | None = None
    other_cells: dict[str, np.ndarray] = field(default_factory=dict)
    partial_cells: np.ndarray | None = None
    labeled: bool = True


def emergence_record(curves: Curves, bootstrap: Bootstrap) -> EmergenceRecord:
    """Find the onset and settled steps in the curves of the probes and of the image labeler."""
    paired = None
    if not curves.decoded.all():
        paired = _probe_record(curves, bootstrap, curves.decoded)
    every = np.ones(len(curves.decoded), bool)
    return EmergenceRecord(
        probe=_probe_record(curves, bootstrap, every),
        paired=paired,
        **{
            rival: _labeler_record(curves, bootstrap, curves.sources[source], every)
            for rival, source in RIVALS.items()
        },
    )


def leads_record(curves: Curves, emergence: EmergenceRecord, bootstrap: Bootstrap) -> LeadsRecord:
    """Compute by how many steps the probes' onset and settled steps precede the labeler's.

    These are the absolute bars, which have the same height for the probes and for the labeler.
    Both curves are of the same test samples: those in which both are defined at every step.

    Args:
        curves: scores over the steps.
        emergence: result of `emergence_record`.
        bootstrap: bootstrap over the test samples.
    """
    of_probe = np.isfinite(curves.probe).all(0)
    leads = {}
    for rival, source in RIVALS.items():
        scores = curves.sources[source]
        of_rival = np.isfinite(scores[curves.decoded_steps - 1]).all(0)
        both = of_probe & of_rival
        probe, other = emergence.paired or emergence.probe, getattr(emergence, rival)
        # The records of `emergence` are of the same samples, unless a score is undefined.
        if (both != (of_probe & curves.decoded)).any():
            probe = _probe_record(curves, bootstrap, both)
        if (both != of_rival).any():
            other = _labeler_record(curves, bootstrap, scores, both)
        leads[rival] = LeadRecord(
            onset=lead_over(probe.absolute.onset, other.absolute.onset),
            settled=lead_over(probe.absolute.settled, other.absolute.settled),
            samples=int(both.sum()),
        )
    return LeadsRecord(**leads, samples=int(curves.decoded.sum()))


def _probe_record(curves: Curves, bootstrap: Bootstrap, samples: np.ndarray) -> CurveRecord:
    """Find the steps of the probes' curve on some of the test samples, (sample,) bool."""
    every = np.arange(1, len(curves.probe) + 1)
    of_probe, _ = _deviations(curves)
    return _curve_record(
        curves, bootstrap, np.where(samples, curves.probe, np.nan), of_probe, every
    )


def _labeler_record(
    curves: Curves, bootstrap: Bootstrap, scores: np.ndarray, samples: np.ndarray
) -> CurveRecord:
    """Find the steps of the labeler's curve, (step, sample), on some of the test samples."""
    if not curves.labeled:
        return _undefined_record("no_labeler")
    unchanged = np.zeros_like(_deviations(curves)[0])
    scores = np.where(samples, scores, np.nan)
    return _curve_record(curves, bootstrap, scores, unchanged, curves.decoded_steps)


def _deviations(curves: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Return the deviations of re-splits from their mean: one of zero if there are none.

    Returns:
        of the probes' curve, (re-split, step, sample), and of the position baseline, (re-split,
        sample).
    """
    if curves.resplits is None:
        return np.zeros((1, *curves.probe.shape)), np.zeros((1, len(curves.position)))
    return curves.resplits.deviations, curves.resplits.position_deviations


def _curve_record(
    curves: Curves,
    bootstrap: Bootstrap,
    scores: np.ndarray,
    deviations: np.ndarray,
    known: np.ndarray,
) -> CurveRecord:
    """Find the onset and settled steps of one curve.

    Re-splits change the curve of the probes, and with its last score the absolute bars of all
    curves.  They change the position baseline too, from which every gain is measured.

    Args:
        curves: scores of the probes and of the position baseline, which set the bars.
        bootstrap: bootstrap over the test samples.
        scores: scores of the curve, (step, sample).
        deviations: deviations of its re-splits, (re-split, step, sample).
        known: steps (from 1) at which the curve is known, ascending.
    """
    position, (of_probe, of_position) = curves.position, _deviations(curves)
    scores, deviations = scores[known - 1], deviations[:, known - 1]
    above = bootstrap.interval(scores[-1] - position).low
    if above is None or above <= 0:
        # A curve whose score at the last step is not clearly above the position baseline has
        # not emerged, so its onset and settled steps are undefined.
        return _undefined_record("too_few_prompts" if above is None else "not_above_position")

    bar = partial(_bar_record, known=known, steps=len(curves.probe), bootstrap=bootstrap)
    last = of_probe[:, -1]
    found = CurveRecord(
        relative=bar(
            relative_margins, (scores, position), zip(deviations, of_position, strict=True)
        ),
        absolute=bar(
            absolute_margins,
            (scores, curves.probe[-1], position),
            zip(deviations, last, of_position, strict=True),
        ),
    )
    if not found.relative.onset.distribution:
        # Enough prompts have a score at the last step, but too few have one at every step.
        found.undefined_because = "too_few_prompts"
    return found


def _undefined_record(reason: UndefinedReason) -> CurveRecord:
    """Return the record of a curve that has no onset and settled steps."""
    undefined = BarRecord(onset=Crossing(), settled=Crossing())
    return CurveRecord(relative=undefined, absolute=undefined, undefined_because=reason)


def _bar_record(
    margins: Callable[..., np.ndarray],
    shown: tuple[np.ndarray, ...],
    moved: Iterable[tuple[np.ndarray, ...]],
    known: np.ndarray,
    steps: int,
    bootstrap: Bootstrap,
) -> BarRecord:
    """Find the steps at which one curve reaches the shares of one kind of gain.

    Args:
        margins: `relative_margins` or `absolute_margins`.
        shown: its arguments before the share, of the curve that is shown.
        moved: deviations of these from their mean, for each re-split.
        known: steps (from 1) at which the curve is known, ascending.
        steps: number of all steps.
        bootstrap: bootstrap over the test samples.
    """
    deviations = list(moved)
    found = {}
    for name, share in SHARES.items():
        # Margins (score minus bar) are linear in the scores.  Those of the deviations of re-split
        # scores from their mean are the deviations of the re-split margins from their mean.
        of_splits = np.stack([margins(*one, share) for one in deviations])
        crossed = crossing(margins(*shown, share), bootstrap, of_splits)
        found[name] = crossed.at_steps(known, steps)
    return BarRecord(**found)


def step_records(curves: Curves, metric: str, bootstrap: Bootstrap) -> list[StepRecord]:
    """Build a record for each step from the scores of the reported layer and the input controls.

    Args:
        curves: scores over the steps.
        metric: name of the metric of `Curves.compared`.
        bootstrap: bootstrap over the test samples.
    """
    return [
        StepRecord(
            step=step + 1,
            score=bootstrap.interval(curves.probe[step]),
            metric=metric,
            value=bootstrap.interval(values),
            less_inputs={
                name: bootstrap.interval(values - scores[step])
                for name, scores in curves.inputs_compared.items()
            },
        )
        for step, values in enumerate(curves.compared)
    ]
