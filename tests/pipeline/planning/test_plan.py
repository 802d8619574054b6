"""The plan of a study: resolved once, in use where a caller says so, never kept beyond that."""

from __future__ import annotations

import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.plan import plan_of, plan_study
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.study.samples import make_samples, resolve_inputs


def prompts_file(path, n):
    path.write_text("prompt,seed\n" + "".join(f"a ball {i},{i}\n" for i in range(n)))
    return path


def test_plan_carries_the_resolved_study_and_its_samples(tiny_study, tmp_path):
    study = tiny_study(prompts={"files": str(prompts_file(tmp_path / "p.csv", 9)), "samples": None})
    plan = plan_study(study)
    assert plan.study == resolve_inputs(study)
    assert plan.study.prompts.content_hash is not None
    assert list(plan.samples) == make_samples(plan.study)
    assert (plan.count, plan.n_stored) == (9, 9)


def test_plan_in_use_is_taken_for_its_own_study_only(tiny_study):
    plan, other = plan_study(tiny_study()), tiny_study(prompts={"samples": 15})
    with plan.in_use():
        assert plan_of(plan.study) is plan
        assert plan_of(other).count == 15
    assert plan_of(plan.study) is not plan


def test_plan_is_made_again_after_a_file_changed(tiny_study, tmp_path):
    path = prompts_file(tmp_path / "p.csv", 9)
    study = tiny_study(prompts={"files": str(path), "samples": None})
    first = prepare_run(study, str(tmp_path / "runs"))
    prompts_file(path, 12)
    second = prepare_run(study, str(tmp_path / "runs"))
    assert first.url != second.url
    assert len(second.samples) == 12


def test_plan_without_its_input_files_is_refused(tiny_study, tmp_path):
    study = tiny_study(prompts={"files": str(tmp_path / "none.csv"), "samples": 9})
    plan = plan_study(study)
    assert plan.samples == ()
    with pytest.raises(UserError, match=r"none\.csv"):
        plan.require_complete()


@pytest.mark.parametrize(("permutations", "least"), [(1, "0.500"), (18, "0.053")])
def test_plan_notes_permutations_that_can_show_no_significant_p(tiny_study, permutations, least):
    (note,) = plan_study(tiny_study(controls={"permutations": permutations})).notes
    assert f"controls.permutations is {permutations}, " in note
    assert f"below {least}; at least 19 " in note


@pytest.mark.parametrize(
    ("kinds", "without"),
    [
        (["adam"], "foreground, depth, shading"),
        (["logistic"], "foreground"),
        (["plain_ridge"], None),
        (["ridge", "logistic"], None),
    ],
)
def test_plan_names_properties_without_a_permutation_p(tiny_study, kinds, without):
    labels = {"depth": None, "shading": None} if kinds == ["logistic"] else {}
    notes = plan_study(tiny_study(probes={"kinds": kinds}, labels=labels)).notes
    of_p = [note for note in notes if "permutation p value" in note]
    assert [note.rpartition(" for ")[2] for note in of_p] == ([without] if without else [])


@pytest.mark.parametrize(
    "controls", [{"permutations": 19}, {}, {"shuffled_labels": False, "permutations": 1}]
)
def test_plan_notes_no_permutations_that_suffice_or_are_off(tiny_study, controls):
    assert plan_study(tiny_study(controls=controls)).notes == ()
