"""Share of edited images that keep their class, where the labeler's classes tie."""

from types import SimpleNamespace

import numpy as np

from ldmprobe_core.interventions import batches


def test_a_tie_after_an_edit_is_a_changed_class_and_one_before_it_is_undefined():
    a, b, tie = [0.9, 0.1], [0.2, 0.8], [0.5, 0.5]
    before, after = np.array([a, a, a, tie, tie]), np.array([a, b, tie, tie, a])
    run = SimpleNamespace(study=None, read=lambda group, name, sample: before)
    kept = batches.class_unchanged(run, {"class": lambda images: after}, after, list(range(5)))
    np.testing.assert_array_equal(kept, [1, 0, 0, np.nan, np.nan])
