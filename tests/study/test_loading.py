"""Loading a study: named files, overrides, and their mistakes."""

from pathlib import Path

import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.schema import Study


def test_load_study_from_a_five_line_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodel:\n  source: tabletop\nsampling:\n  steps: 10\n")
    study = load_study(str(path))
    assert study.sampling.steps == 10
    assert study.prompts.samples == Study().prompts.samples
    assert study.labels.maps == ("foreground", "depth", "shading")


def test_load_study_of_an_empty_file_is_the_default_study(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_study(str(path)) == Study()


def test_load_study_of_the_embedded_tabletop_study():
    study = load_study("tabletop")
    assert study.prompts.samples >= 192
    assert study.sampling.steps == 15
    assert study.sampling.guidance > 1
    assert set(study.probes.kinds) == {"ridge", "logistic"}


def test_load_study_mistakes_of_files_and_overrides(tmp_path):
    broken, listed = tmp_path / "broken.yaml", tmp_path / "listed.yaml"
    broken.write_text("name: [\n")
    listed.write_text("- a\n")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00name")
    for source, overrides, words in (
        ("no-such-study", [], ["no-such-study", "no such file"]),
        (str(tmp_path / "nothing.yaml"), [], ["no such file"]),
        ("../tabletop", [], ["no such file"]),
        (str(broken), [], ["line 2", "not valid YAML"]),
        (str(listed), [], ["list"]),
        (str(binary), [], ["UTF-8"]),
        (str(tmp_path), [], ["no such file"]),
        ("x" * 10_000, [], ["no such file"]),
        ("nul\0", [], ["no such file"]),
        ("tabletop", ["sampling.steps"], ["key=value"]),
        ("tabletop", ["sampling.steps.more=1"], ["holds a value"]),
        ("tabletop", ["name=[bad"], ["not a YAML value"]),
    ):
        with pytest.raises(UserError) as caught:
            load_study(source, overrides)
        for word in words:
            assert word in str(caught.value)


def test_overrides_add_keys_to_the_name_of_a_labeler():
    study = load_study("poster", ["labels.depth.weights=/somewhere", "labels.class=vgg16"])
    assert study.labels.depth.name == "midas"
    assert study.labels.depth.weights == "/somewhere"


def test_overrides_are_read_as_yaml():
    study = load_study("tabletop", ["sampling.steps=20", "probes.kinds=[ridge]"])
    assert study.sampling.steps == 20
    assert study.probes.kinds == ("ridge",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"capture": {"layers": ["a.*", "a.*"]}},
            r"^study: capture\.layers: .* a value twice\. Fix: ",
        ),
        ({"probes": {"kinds": ["ridge", "ridge"]}}, r"^study: probes: kinds has .*\. Fix: "),
        ({"sampling": {"steps": True}}, r"^study: sampling\.steps is True: .*\. Fix: "),
        ({"samplng": {}}, r"^study: samplng is not a key of a study; .*\. Fix: "),
        ({"prompts": {"items": ["a", "b"]}}, r"^study: prompts\.samples gives 2 .*\. Fix: "),
    ],
)
def test_parse_study_names_the_field_once_with_a_remedy(content, words):
    with pytest.raises(UserError, match=words):
        parse_study(content)


def test_load_study_of_a_file_without_permission_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "study.yaml"
    path.write_text("name: a\n")

    def refuse(_self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)\. Fix: "):
        load_study(str(path))
