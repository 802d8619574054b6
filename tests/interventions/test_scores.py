"""Scores of edited images."""

import numpy as np
import pytest

from ldmprobe_core.interventions.scores import background_change


def test_background_change_counts_pixels_outside_both_masks():
    before = np.zeros((1, 4, 4, 3), np.uint8)
    after = before.copy()
    after[0, 0, 0] = 255  # in the object
    after[0, 3, 3] = (0, 0, 153)  # outside: 0.2 on average
    object_mask, target_mask = np.zeros((2, 1, 4, 4), bool)
    object_mask[0, 0, 0] = target_mask[0, 0, 1] = True
    change = background_change(before, after, object_mask, target_mask)
    assert change[0] == pytest.approx(0.2 / 14)
    assert np.isnan(background_change(before, after, ~object_mask, object_mask)[0])
