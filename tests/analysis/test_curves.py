"""Steps of curves with known re-splits, whose gains are over their own position baselines."""

import numpy as np
import pytest

from ldmprobe_core.analysis.curves import RIVALS, Curves, emergence_record
from ldmprobe_core.analysis.generalization.resplits import ResplitCurves
from ldmprobe_core.analysis.records import LayerRecord
from ldmprobe_core.probing.inference.bootstrap import Bootstrap

CURVE = np.array([0.1, 0.25, 0.4, 0.6])
SHIFTS = np.array([-0.3, 0.3])


def onset(of_scores, of_position):
    """Low and high end of the onset, which is step 3: margins are -.2, -.05, .1 and .3."""
    every = np.ones((2, 4, 8))
    curves = Curves(
        probe=np.repeat(CURVE[:, None], 8, axis=1),
        conditions={},
        sources=dict.fromkeys(RIVALS.values(), np.full((4, 8), np.nan)),
        position=np.zeros(8),
        inputs={},
        compared=np.zeros((4, 8)),
        inputs_compared={},
        cells=np.zeros((4, 1)),
        kind="ridge",
        layer=LayerRecord(name="a", kind="ridge", tied=["a"]),
        decoded=np.ones(8, bool),
        decoded_steps=np.arange(1, 5),
        resplits=ResplitCurves(
            ["a", "a"],
            every * of_scores[:, None, None],
            every[:, 0] * of_position[:, None],
            1.0,
        ),
    )
    found = emergence_record(curves, Bootstrap(np.arange(8), 100, 0.95, 0)).probe.relative.onset
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
