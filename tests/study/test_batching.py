"""Units of accumulation, and the samples with step images and of the permuted denoiser."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from run_helpers import small_study, statistics_study

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.batching import (
    ENOUGH_SHUFFLES,
    accumulation_units,
    different_shuffles,
    permuted_samples,
    step_image_samples,
    step_image_steps,
)
from ldmprobe_core.study.conditions import derange
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.probe_sections import Controls
from ldmprobe_core.study.samples import Sample, make_samples
from ldmprobe_core.study.sections import Trajectory


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


@pytest.mark.parametrize("training", [1, 2, 3, 4, 5])
def test_different_shuffles_are_those_that_many_seeds_give(tiny_model, training):
    seen = {tuple(derange(np.arange(training), seed)) for seed in range(400)}
    samples = [Sample(i, f"{i}", i, None, "test") for i in range(3)]
    samples += [Sample(i, f"{i}", i, None, "train") for i in range(3, 3 + training)]
    stored, summed = (statistics_study(tiny_model, keep) for keep in ("activations", "statistics"))
    assert different_shuffles(stored, samples) == len(seen)
    assert different_shuffles(summed, samples) == len(seen)


@pytest.mark.parametrize("keep", ["activations", "statistics"])
def test_different_shuffles_of_many_samples_are_not_counted_exactly(tiny_model, keep):
    """The exact number of ten thousand samples has 35,000 digits."""
    samples = [Sample(i, f"{i}", i, None, "train") for i in range(10_000)]
    assert different_shuffles(statistics_study(tiny_model, keep), samples) == ENOUGH_SHUFFLES


def test_different_shuffles_of_batches_are_combined(tiny_model):
    samples = [Sample(i, f"{i}", i, None, "train") for i in range(8)]  # two batches of 4
    assert different_shuffles(statistics_study(tiny_model, "statistics"), samples) == 6 * 6


def parts(study, index):
    samples = make_samples(study)
    return Counter(samples[i].split for i in index)


def test_step_image_samples_are_of_test_and_some_training_samples(tiny_model):
    content = small_study("parts", tiny_model, 60).model_dump(mode="json", by_alias=True)

    def chosen(**changes):
        study = parse_study({**content, **changes})
        index = step_image_samples(study, make_samples(study))
        assert (np.diff(index) > 0).all()
        return parts(study, index)

    every = parts(parse_study(content), range(60))
    # 27 training, 9 validation and 24 test samples; 9 of 27 training samples are a third.
    assert every == {"train": 27, "validation": 9, "test": 24}
    some = {"samples": 10, "training": 9}
    assert chosen(trajectory=some) == {"train": 9, "validation": 3, "test": 10}
    assert chosen(trajectory=some, controls={"clean_pixels": False}) == {"train": 9, "test": 10}
    assert chosen(trajectory={"samples": 10, "training": 0}) == {"test": 10}
    assert chosen(trajectory={"samples": "all", "training": 100}) == every
    both = chosen(trajectory={"samples": 33, "training": 0, "of": "heldout"})
    assert both == {"validation": 9, "test": 24}


@pytest.mark.parametrize("wanted", [1, 16, 20, 59, 60, 100])
def test_permuted_samples_are_complete_batches_of_all_splits_in_proportion(tiny_model, wanted):
    content = small_study("twin", tiny_model, 60).model_dump(mode="json", by_alias=True)
    content["controls"] = {"permuted_weights": {"samples": wanted}}
    study = parse_study(content)
    index = permuted_samples(study, make_samples(study))
    batches = {int(i) // 4 for i in index}
    assert set(index) == {i for batch in batches for i in range(4 * batch, 4 * batch + 4)}
    counts = parts(study, index)
    assert min(wanted, 60) <= len(index)
    assert counts.keys() == {"train", "validation", "test"}
    if wanted >= 16:
        assert len(index) < min(wanted, 60) + 4
        for split, all_of_it in {"train": 27, "validation": 9, "test": 24}.items():
            assert abs(counts[split] - all_of_it * len(index) / 60) <= 2


def test_permuted_samples_of_sums_include_training_batches(tiny_model):
    study = statistics_study(tiny_model, "statistics", 60)
    study = study.model_copy(update={"controls": Controls(permuted_weights={"samples": 24})})
    counts = parts(study, permuted_samples(study, make_samples(study)))
    assert counts["train"] > counts["test"] >= counts["validation"] > 0


@pytest.mark.parametrize(
    ("steps", "expected"), [("all", [0, 1, 2, 3]), ([4], [3]), ([1, 3, 4], [0, 2, 3])]
)
def test_step_image_steps_counts_from_0(tiny_model, steps, expected):
    study = small_study("steps", tiny_model, 12)
    study = study.model_copy(update={"trajectory": Trajectory(steps=steps)})
    assert step_image_steps(study, 4).tolist() == expected


@pytest.mark.parametrize("steps", [[1, 2], [], [1, 5]])
def test_step_image_steps_need_the_last_step(tiny_model, steps):
    study = small_study("steps", tiny_model, 12)
    study = study.model_copy(update={"trajectory": Trajectory(steps=steps)})
    with pytest.raises(UserError, match=r"trajectory.steps: .* 4 steps. Fix: "):
        step_image_steps(study, 4)
