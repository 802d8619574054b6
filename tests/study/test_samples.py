"""Samples of a study: balanced, seeded, split by prompt."""

from itertools import chain

import numpy as np
import pytest

from ldmprobe_core.study.batching import accumulation_units
from ldmprobe_core.study.conditions import LabelColumn
from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.study.samples import make_samples, n_stored_samples, resolve_inputs


def test_make_samples_balances_categories_and_splits_by_prompt():
    study = load_study("tabletop")
    samples = make_samples(study)
    assert samples == make_samples(study)
    assert len({s.seed for s in samples}) == len(samples)
    counts = [sum(s.category == c for s in samples) for c in CATEGORIES]
    assert max(counts) - min(counts) <= 1
    by_prompt = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt, set()).add(sample.split)
    assert all(len(splits) == 1 for splits in by_prompt.values())
    share = sum(s.split == "test" for s in samples) / len(samples)
    assert abs(share - study.probes.split.test) < 0.05


def test_make_samples_keeps_repeated_prompts_in_one_split():
    study = parse_study({"prompts": {"items": ["a", "b", "c", "d", "e", "f", "g"], "samples": 20}})
    samples = make_samples(study)
    assert [s.prompt for s in samples[:8]] == ["a", "b", "c", "d", "e", "f", "g", "a"]
    assert {s.split for s in samples} == {"train", "validation", "test"}
    assert samples[0].split == samples[7].split
    assert samples[0].seed != samples[7].seed


@pytest.fixture
def of_file(tmp_path):
    """Function that makes a study of a file, whose 64 rows are sorted by prompt."""

    def study_of(keep, seeds_of_prompt):
        rows = [
            f"a {i // seeds_of_prompt} on a table,{i},{'train' if i < 48 else 'test'}"
            for i in range(64)
        ]
        file = tmp_path / f"{seeds_of_prompt}.csv"
        file.write_text("\n".join(["prompt,seed,split", *rows]))
        content = {
            "name": "sorted", "prompts": {"files": str(file)}, "sampling": {"batch": 4},
            "capture": {"keep": keep}, "probes": {"kinds": ["ridge"]},
            "labels": {"depth": "tabletop"},
        }  # fmt: skip
        return resolve_inputs(parse_study(content))

    return study_of


def test_labels_of_a_file_that_is_sorted_by_prompt_are_shuffled_across_prompts(of_file):
    study = of_file("statistics", 4)
    samples = make_samples(study)
    first, same, count = n_stored_samples(samples, study), 0, 0
    units = accumulation_units(study, first, len(samples))
    for batch in chain.from_iterable(chain.from_iterable(units)):
        for draw in range(study.controls.permutations):
            column = LabelColumn("shuffled", "depth", draw)
            owners = column.owners(np.array(batch), study.prompts.seed + batch.start)
            same += sum(
                samples[i].prompt == samples[j].prompt for i, j in zip(batch, owners, strict=True)
            )
            count += len(batch)
    n_train = len(samples) - first
    assert count == n_train * study.controls.permutations
    # Of the others, 3 training images have the same prompt; in the order of the file all would.
    assert same / count < 2 * 3 / (n_train - 1)
    assert {(s.prompt, s.seed, s.split) for s in samples} == {
        (s.prompt, s.seed, s.split) for s in make_samples(of_file("activations", 4))
    }


def test_training_samples_keep_their_order_unless_sums_alone_are_kept_of_repeated_prompts(of_file):
    distinct, summed, all_kept = (
        [s.seed for s in make_samples(of_file(keep, n)) if s.split == "train"]
        for keep, n in (("statistics", 1), ("statistics", 4), ("activations", 4))
    )
    assert distinct == sorted(distinct)
    assert all_kept == sorted(all_kept)
    assert summed != sorted(summed)
