"""Counts of undefined scores, of those that were to be computed."""

import numpy as np

from ldmprobe_core.analysis.controls.coverage import Coverage, count_undefined
from ldmprobe_core.analysis.nonfinite import undefined_record


def test_scores_that_were_not_to_be_computed_are_not_undefined():
    scores = np.full((2, 4, 6), np.nan)
    scores[:, [0, 3], :3] = 0.5  # steps 1 and 4, the first three samples
    scores[1, 3, 2] = np.nan  # the one that is undefined
    some = Coverage(np.arange(3), {}, np.arange(6) < 3)
    assert count_undefined(scores) == 2 * 4 * 6 - 11
    assert count_undefined(scores, np.array([0, 3]), some) == 1
    assert count_undefined(scores, np.array([0]), some) == 0


def test_empty_masks_and_a_choice_from_nothing_are_told():
    masks = np.zeros((4, 2, 2))
    masks[0, 0, 0] = 1
    scores = np.array([0.5, 1.0, np.nan, 0.2])
    record = undefined_record(scores, 7, masks, np.array([[-np.inf, 0.1]]))
    assert (record.best, record.any, record.both_empty, record.truth_empty) == (1, 7, 1, 3)
    assert not record.unchosen
    assert undefined_record(scores, 7, None, np.full((2, 2), -np.inf)).unchosen
