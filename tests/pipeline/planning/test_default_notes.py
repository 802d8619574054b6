"""Notes on labelers and prompts of the embedded world in studies of other models."""

import pytest

from ldmprobe_core.pipeline.planning.default_notes import default_notes
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.loading import parse_study

OTHER = {"source": "/models/other"}


def keys(**parts):
    """Keys that the notes of a study name as left out."""
    notes = default_notes(parse_study({"model": OTHER, **parts}))
    assert all(": left out, so " in note for note in notes)
    return [key for note in notes for key in note.partition(": left out")[0].split(", ")]


def test_notes_name_the_labelers_and_prompts_that_a_study_of_another_model_leaves_out():
    labels = [f"labels.{name}" for name in ("foreground", "depth", "shading", "class")]
    assert keys() == [*labels, "prompts.set"]
    assert keys(labels={"depth": "midas", "class": None}) == [
        "labels.foreground", "labels.shading", "prompts.set",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "prompts", [{"set": "tabletop"}, {"set": "objects"}, {"items": ["a", "b", "c"]}]
)
def test_no_note_on_what_the_study_states(prompts):
    labels = {"foreground": "tabletop", "depth": "midas", "shading": None, "class": "tabletop"}
    assert keys(prompts=prompts, labels=labels) == []


def test_source_images_have_no_note_on_prompts():
    labels = dict.fromkeys(("foreground", "depth", "shading", "class"), "tabletop")
    assert keys(source="images", images={"folder": "scans"}, labels=labels) == []


def test_the_embedded_model_has_its_own_defaults():
    assert default_notes(parse_study({})) == []


def test_a_plan_has_these_notes(tiny_model):
    notes = plan_study(parse_study({"model": {"source": str(tiny_model)}})).notes
    assert sum(": left out, so " in note for note in notes) == 2
