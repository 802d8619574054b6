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


def test_an_override_changes_its_own_key_of_a_value_with_several_aliases(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "labels:\n  foreground: &own {name: tabletop}\n  depth: *own\n"
        "  shading: {<<: *own}\nprobes: &p {}\n"
    )
    labels = load_study(path, ["labels.depth.name=midas"]).labels
    names = [labels.labeler(prop).name for prop in ("foreground", "depth", "shading")]
    assert names == ["tabletop", "midas", "tabletop"]


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
        ({"sampling": {"steps": True}}, r"^study: sampling\.steps is true: .*\. Fix: "),
        ({"samplng": {}}, r"^study: samplng is not a key of a study; .*\. Fix: "),
        ({"prompts": {"items": ["a", "b"]}}, r"^study: prompts\.items gives 2 .*\. Fix: "),
    ],
)
def test_parse_study_names_the_field_once_with_a_remedy(content, words):
    with pytest.raises(UserError, match=words):
        parse_study(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 42", "name is 42: this is not text. Fix: give text, in quotes if"),
        ("name: 2020-01-01", "name is 2020-01-01: this is not text"),
        (
            "labels: {foreground: off}",
            "labels.foreground: this is not the name of a labeler (false). Fix: give a name, or",
        ),
        (
            "trajectory: {samples: ALL}",
            "trajectory.samples is 'ALL': this is not a whole number. Fix: give a whole number, "
            "without quotes, or 'all'",
        ),
        ("sampling: null", "sampling is null: this is not a mapping. Fix: give keys and values"),
        ("sampling: {steps: .nan}", "sampling.steps is nan: this is not a whole number"),
        ("sampling: {steps: 0}", "sampling.steps is 0: the value is too small. Fix: give 1 or"),
        ("capture: {layers: attn1}", "capture.layers is 'attn1': this is not a list. Fix: give"),
        ("prompts: {items: [a, yes]}", "prompts.items.1 is true: this is not text"),
        ("trajectory: {steps: every}", "trajectory.steps is 'every': there is no such choice. "),
        ("trajectory: {steps: every}", "Fix: give 'all', or a list"),
        ("trajectory: {steps: [0, 3]}", "trajectory.steps.0 is 0: the value is too small. Fix"),
        ("prompts: {files: {a: b}}", "prompts.files.a is 'a': there is no such choice. Fix: give"),
        ("properties: {dark: {title: d}}", "properties.dark.kind: this key is missing. Fix: add"),
        ("list-x: 3", "list-x is not a key of a study; "),
        ("'': 3", ": '' is not a key of a study; "),
        ("prompts: {function-a: 1}", "prompts.function-a is not a key of "),
        ("properties: {list-a: {kind: maks}}", "properties.list-a.kind is 'maks'"),
        ("3: 4", "3: this key is not text. Fix: put it in quotes"),
        ("name: a\n---\nname: b", ", line 2: this is not valid YAML (but found another document)"),
        ("name: é\nx: a\0b", ", line 2: this is not valid YAML (character U+0000). Fix: "),
        ("42", ": a study is a mapping of keys to values, but this is 42. Fix: "),
    ],
)
def test_load_study_words_mistakes_as_yaml_does(text, message, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_study(path)
    assert message in str(caught.value)
    # Words of Python's type system mean nothing to an author of YAML.
    for word in ("tuple", "dictionary", "instance", "input should", "None", "literal["):
        assert word not in str(caught.value)


def test_load_study_of_a_file_without_permission_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "study.yaml"
    path.write_text("name: a\n")

    def refuse(_self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)\. Fix: "):
        load_study(str(path))
