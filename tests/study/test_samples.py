"""Samples of a study: balanced, seeded, split by prompt."""

from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.study.samples import make_samples


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
