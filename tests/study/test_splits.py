"""A fixed number of held-out samples."""

import pytest
from run_helpers import statistics_study

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import make_samples


def test_heldout_prompts_hold_at_least_the_requested_number_of_samples(tiny_model):
    for samples, heldout in ((24, 8), (300, 8), (1000, 40)):
        study = statistics_study(
            tiny_model, "activations", samples, probes={"split": {"heldout": heldout}}
        )
        splits = [s.split for s in make_samples(study)]
        assert heldout <= len(splits) - splits.count("train") <= 2 * heldout
        assert {"validation", "test"} <= set(splits)


def test_heldout_prompts_are_shared_between_validation_and_test(tiny_model):
    """A quarter of them is for validation, as the shares 0.1 and 0.3 say."""
    split = {"train": 0.6, "validation": 0.1, "test": 0.3, "heldout": 40}
    study = statistics_study(tiny_model, "activations", 1000, probes={"split": split})
    split_of = {sample.group: sample.split for sample in make_samples(study)}
    names = list(split_of.values())
    n_heldout = len(names) - names.count("train")
    assert n_heldout >= 8
    assert names.count("validation") == round(n_heldout / 4)


def test_splits_follow_the_seed_of_the_prompts(tiny_model, tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,seed\n" + "".join(f"a{i},{i}\n" for i in range(40)))

    def splits(seed):
        prompts = {"files": str(file), "seed": seed}
        study = statistics_study(tiny_model, "activations", None, prompts=prompts)
        return [sample.split for sample in make_samples(study)]

    assert splits(0) == splits(0)
    assert splits(0) != splits(1)
    assert sorted(splits(0)) == sorted(splits(1))


def test_heldout_is_refused_beside_files_that_name_splits(tiny_model, tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,seed,split\na,1,train\nb,2,validation\nc,3,test\n")
    study = statistics_study(tiny_model, "activations", None, prompts={"files": str(file)})
    content = study.model_dump(mode="json", by_alias=True)
    content["probes"]["split"]["heldout"] = 2
    with pytest.raises(
        UserError, match=r"probes.split.heldout is 2, but prompts.files name splits"
    ):
        make_samples(parse_study(content))


def test_heldout_that_leaves_no_training_samples_is_refused(tiny_model):
    study = statistics_study(tiny_model, "activations", probes={"split": {"heldout": 24}})
    with pytest.raises(UserError, match=r"probes.split.heldout is 24.*lower probes.split.heldout"):
        make_samples(study)
