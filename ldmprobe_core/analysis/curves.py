"""Score curves of one property over the sampler steps, and the steps at which it emerges."""

from __future__ import annotations

from dataclasses import dataclass, field
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


def emergence_record(curves: Curves, bootstrap: Bootstrap) -> EmergenceRecord:
    """Find the onset and settled steps in the curves of the probes and of the image labeler.

    Re-splits change the curve of the probes, and with its last score the absolute bars of all
    curves.  They change the position baseline too, from which every gain is measured.
    """
    position, n_steps = curves.position, len(curves.probe)
    of_probe, of_position = np.zeros((1, *curves.probe.shape)), np.zeros((1, len(position)))
    if curves.resplits is not None:
        of_probe, of_position = curves.resplits.deviations, curves.resplits.position_deviations

    def record(scores: np.ndarray, deviations: np.ndarray, known: np.ndarray) -> CurveRecord:
        scores, deviations = scores[known - 1], deviations[:, known - 1]
        above = bootstrap.interval(scores[-1] - position).low
        if above is None or above <= 0:
            # A curve whose score at the last step is not clearly above the position baseline has
            # not emerged, so its onset and settled steps are undefined.
            undefined = BarRecord(onset=Crossing(), settled=Crossing())
            return CurveRecord(
                relative=undefined,
                absolute=undefined,
                undefined_because="too_few_prompts" if above is None else "not_above_position",
            )
        relative, absolute = {}, {}
        for name, share in SHARES.items():
            # `relative_margins` computes margins (score minus bar) and is linear in the scores.
            # When applied to the deviations of re-split scores from their mean, it therefore
            # returns the deviations of the re-split margins from their mean.
            relative[name] = crossing(
                relative_margins(scores, position, share),
                bootstrap,
                np.stack(
                    [
                        relative_margins(one, base, share)
                        for one, base in zip(deviations, of_position, strict=True)
                    ]
                ),
            ).at_steps(known, n_steps)
            absolute[name] = crossing(
                absolute_margins(scores, curves.probe[-1], position, share),
                bootstrap,
                np.stack(
                    [
                        absolute_margins(one, other[-1], base, share)
                        for one, other, base in zip(deviations, of_probe, of_position, strict=True)
                    ]
                ),
            ).at_steps(known, n_steps)
        found = CurveRecord(relative=BarRecord(**relative), absolute=BarRecord(**absolute))
        if not found.relative.onset.distribution:
            # Enough prompts have a score at the last step, but too few have one at every step.
            found.undefined_because = "too_few_prompts"
        return found

    every = np.arange(1, n_steps + 1)
    paired = None
    if not curves.decoded.all():
        paired = record(np.where(curves.decoded, curves.probe, np.nan), of_probe, every)
    return EmergenceRecord(
        probe=record(curves.probe, of_probe, every),
        paired=paired,
        **{
            rival: record(curves.sources[source], np.zeros_like(of_probe), curves.decoded_steps)
            for rival, source in RIVALS.items()
        },
    )


def leads_record(emergence: EmergenceRecord, samples: int) -> LeadsRecord:
    """Compute by how many steps the probes' onset and settled steps precede the labeler's.

    These are the absolute bars, which have the same height for the probes and for the labeler.

    Args:
        emergence: steps of all curves.
        samples: number of test samples with step images.
    """
    probe = (emergence.paired or emergence.probe).absolute

    def record(other: BarRecord) -> LeadRecord:
        return LeadRecord(
            onset=lead_over(probe.onset, other.onset),
            settled=lead_over(probe.settled, other.settled),
        )

    leads = {rival: record(getattr(emergence, rival).absolute) for rival in RIVALS}
    return LeadsRecord(**leads, samples=samples)


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
