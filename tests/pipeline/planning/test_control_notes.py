"""Warnings about controls and probes that have too few training images."""

import pytest

from ldmprobe_core.pipeline.planning.plan import plan_study


@pytest.fixture
def planned(tiny_study, tmp_path):
    """Function that plans a study of some training images and 6 others; it returns the notes."""

    def notes_of(training, **parts):
        splits = ["train"] * training + ["validation"] * 3 + ["test"] * 3
        rows = [f"a ball {i},{i},{split}" for i, split in enumerate(splits)]
        file = tmp_path / "prompts.csv"
        file.write_text("\n".join(["prompt,seed,split", *rows]))
        prompts = {"files": str(file), "samples": None}
        return plan_study(tiny_study(prompts=prompts, **parts)).notes

    return notes_of


@pytest.mark.parametrize(
    ("training", "permutations", "different"), [(4, 20, 6), (3, 20, 2), (4, 6, None), (5, 20, None)]
)
def test_plan_notes_permutations_that_must_be_repeated(planned, training, permutations, different):
    notes = planned(training, controls={"permutations": permutations})
    found = [note for note in notes if "different permutations" in note]
    assert len(found) == (different is not None)
    if different:
        assert f"labels of {training} training images have {different} different" in found[0]


def test_plan_notes_no_permutations_that_are_off(planned):
    assert planned(3, controls={"shuffled_labels": False}) == ()


@pytest.mark.parametrize(
    ("training", "parts", "said"),
    [
        (
            108,
            {"probes": {"kinds": ["ridge", "adam"]}},
            "kind adam 810 updates (the paper's 1,860)",
        ),
        (5, {"controls": {"mlp": True}}, "kind mlp 60 updates"),
        (124, {"controls": {"mlp": True}}, None),  # 31 batches of 4, 30 times, are half of 1,860
        (5, {}, None),
    ],
)
def test_plan_notes_probes_with_few_updates(planned, training, parts, said):
    notes = planned(training, **parts)
    assert len(notes) == (said is not None)
    if said:
        assert notes[0].startswith(f"{training} training images give probes of {said}")
