"""Units of accumulation."""

from itertools import chain

import pytest
from run_helpers import statistics_study

from ldmprobe_core.study.batching import accumulation_units


@pytest.mark.parametrize(("count", "first"), [(21, 8), (22, 8), (24, 0), (9, 8), (10, 8), (8, 0)])
def test_accumulation_units_hold_every_training_sample_once_and_at_least_three_a_batch(
    tiny_model, count, first
):
    study = statistics_study(tiny_model, "statistics")  # batches of 4
    parts = accumulation_units(study, first, count)
    batches = list(chain.from_iterable(chain.from_iterable(parts)))
    assert list(chain.from_iterable(batches)) == list(range(first, count))
    assert all(2 < len(batch) <= 6 for batch in batches) or count - first < 3
    assert len(parts) == min(2, len(batches))
    assert all(part for part in parts)
