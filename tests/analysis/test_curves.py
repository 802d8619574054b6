"""Steps of curves with known re-splits, and the reasons why a curve has none."""

from dataclasses import replace

import numpy as np
import pytest

from ldmprobe_core.analysis.curves import RIVALS, Curves, emergence_record, leads_record
from ldmprobe_core.analysis.generalization.resplits import ResplitCurves
from ldmprobe_core.analysis.records import LayerRecord
from ldmprobe_core.probing.inference.bootstrap import Bootstrap

CURVE = np.array([0.1, 0.25, 0.4, 0.6])
SHIFTS = np.array([-0.3, 0.3])


def curves_of(probe, labeler=np.nan, position=0.0, resplits=None):
    """Curves of probes and of a labeler, each (step, sample), and a score of position."""
    steps, samples = probe.shape
    return Curves(
        probe=probe,
        conditions={},
        sources=dict.fromkeys(RIVALS.values(), np.broadcast_to(labeler, probe.shape)),
        position=np.full(samples, position),
        inputs={},
        compared=np.zeros(probe.shape),
        inputs_compared={},
        cells=np.zeros((steps, 1)),
        kind="ridge",
        layer=LayerRecord(name="a", kind="ridge", tied=["a"]),
        decoded=np.ones(samples, bool),
        decoded_steps=np.arange(1, steps + 1),
        resplits=resplits,
    )


def of_eight_prompts(curves):
    return emergence_record(curves, Bootstrap(np.arange(8), 100, 0.95, 0))


def onset(of_scores, of_position):
    """Low and high end of the onset, which is step 3: margins are -.2, -.05, .1 and .3."""
    every = np.ones((2, 4, 8))
    resplits = ResplitCurves(
        ["a", "a"],
        every * of_scores[:, None, None],
        every[:, 0] * of_position[:, None],
        1.0,
    )
    curves = curves_of(np.repeat(CURVE[:, None], 8, axis=1), resplits=resplits)
    found = of_eight_prompts(curves).probe.relative.onset
    return found.low, found.high


@pytest.mark.parametrize(
    ("of_scores", "of_position", "expected"),
    [
        # The margin is s(t) - s(T) / 2 - b / 2: shifts of s and b by d cancel; of s alone, they
        # move the margins by d / 2, that is by .15.
        (SHIFTS, SHIFTS, (3, 3)),
        (SHIFTS, 0 * SHIFTS, (2, 4)),
        (0 * SHIFTS, SHIFTS, (2, 4)),
        (0 * SHIFTS, 0 * SHIFTS, (3, 3)),
    ],
)
def test_resplits_shift_gains_over_their_own_position(of_scores, of_position, expected):
    assert onset(of_scores, of_position) == expected


def rising_at(steps):
    """Curves of 10 steps that rise from 0 to 1 at the given step of each sample, (step, sample)."""
    return (np.arange(1, 11)[:, None] >= np.asarray(steps)).astype(float)


@pytest.mark.parametrize("which", ["probe", "labeler"])
def test_lead_is_of_the_images_in_which_both_curves_are_defined(which):
    """Images of the first kind have a lead of 3, those of the second one of 2."""
    curves = {
        "probe": rising_at([1] * 8 + [6] * 8),
        "labeler": rising_at([4] * 8 + [8] * 8),
    }
    curves[which][0, 8:] = np.nan  # undefined at step 1 in all images of the second kind
    given, bootstrap = curves_of(**curves), Bootstrap(np.arange(16), 100, 0.95, 0)
    leads = leads_record(given, emergence_record(given, bootstrap), bootstrap)
    assert (leads.decoded.onset.steps, leads.decoded.onset.low, leads.decoded.onset.high) == (
        3,
    ) * 3
    assert leads.decoded.samples == 8
    assert leads.samples == 16


def test_lead_of_curves_that_are_defined_everywhere_is_of_all_images():
    given = curves_of(rising_at([2] * 12), rising_at([7] * 12))
    bootstrap = Bootstrap(np.arange(12), 100, 0.95, 0)
    leads = leads_record(given, emergence_record(given, bootstrap), bootstrap)
    assert (leads.clean.onset.steps, leads.clean.samples) == (5, 12)


@pytest.mark.parametrize(
    ("position", "undefined_at", "reason"),
    [
        (0.0, {}, None),
        (0.0, {0: slice(3)}, None),
        (0.0, {0: slice(4)}, "too_few_prompts"),
        (0.0, {0: slice(8)}, "too_few_prompts"),
        (0.0, {3: slice(4)}, "too_few_prompts"),
        (0.0, {1: slice(2), 2: slice(6, None)}, "too_few_prompts"),
        (0.6, {}, "not_above_position"),
        (0.9, {0: slice(8)}, "not_above_position"),
    ],
)
def test_a_curve_without_an_onset_has_the_reason(position, undefined_at, reason):
    """Of eight prompts, some have no score at a step; five must have one at every step."""
    probe = np.repeat(CURVE[:, None], 8, axis=1)
    for step, prompts in undefined_at.items():
        probe[step, prompts] = np.nan
    found = of_eight_prompts(curves_of(probe, 0.95, position)).probe
    assert found.undefined_because == reason
    assert bool(found.relative.onset.distribution) == (reason is None)
    assert ("undefined_because" in found.model_dump()) == (reason is not None)


def test_a_labelers_curve_without_a_labeler_has_this_reason():
    """A labeler whose scores are all undefined is another reason."""
    given = curves_of(np.repeat(CURVE[:, None], 8, axis=1))
    for labeled, reason in ((True, "too_few_prompts"), (False, "no_labeler")):
        found = of_eight_prompts(replace(given, labeled=labeled))
        assert found.probe.undefined_because is None
        assert {getattr(found, rival).undefined_because for rival in RIVALS} == {reason}
