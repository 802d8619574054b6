"""A study's file: defaults, hash, and mistakes told in one sentence."""

import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.prompt_sets import CATEGORIES, tabletop_prompts
from ldmprobe_core.study.samples import make_samples
from ldmprobe_core.study.schema import Study


def test_a_five_line_file_is_a_study(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodel:\n  source: tabletop\nsampling:\n  steps: 10\n")
    study = load_study(str(path))
    assert study.sampling.steps == 10
    assert study.prompts.samples == Study().prompts.samples
    assert study.labels.maps == ("foreground", "depth", "shading")


def test_an_empty_file_is_the_default_study(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_study(str(path)) == Study()


def test_the_default_study_is_what_it_says():
    study = load_study("tabletop")
    assert study.prompts.samples >= 192
    assert study.sampling.steps == 15
    assert study.sampling.guidance > 1
    assert set(study.probes.kinds) == {"ridge", "logistic"}


def test_the_hash_is_of_what_decides_the_result():
    study = Study()
    assert study.hash == Study().hash
    assert study.hash == parse_study({"execution": {"workers": 7, "runner": "dask"}}).hash
    for other in (
        {"sampling": {"batch": 8}},
        {"sampling": {"threads": 2}},
        {"prompts": {"seed": 1}},
        {"controls": {"permuted_weights": False}},
        {"name": "other"},
    ):
        assert parse_study(other).hash != study.hash


def test_a_study_survives_its_own_json():
    study = parse_study({"prompts": {"items": ["a", "b", "c"]}, "labels": {"class": None}})
    import json

    assert parse_study(json.loads(study.to_json())) == study


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"sampling": {"step": 3}}, ["sampling.step", "not a key", "steps"]),
        ({"prompts": {"items": ["a", "b", "c\0d"]}}, ["prompts.items[2] holds a character"]),
        ({"prompts": {"negative": "\ud800"}}, ["prompts.negative holds a character"]),
        ({"images": {"folder": "a\0b"}}, ["images.folder holds a character"]),
        ({"execution": {"address": "tcp://a:1"}}, ["address is given", "set runner to dask"]),
        ({"execution": {"gpus_per_worker": 1}}, ["gpus_per_worker is given", "runner to dask"]),
        (
            {"execution": {"runner": "dask", "address": "tcp://a:1", "cluster": "b.yaml"}},
            ["address and cluster are both given"],
        ),
        ({"prompt": {}}, ["prompt", "not a key", "prompts"]),
        ({"sampling": {"steps": 0}}, ["sampling.steps", "0", "greater than or equal to 1"]),
        ({"sampling": {"steps": "many"}}, ["sampling.steps", "many", "integer"]),
        ({"sampling": {"steps": True}}, ["sampling.steps", "True"]),
        ({"sampling": {"guidance": 0.5}}, ["sampling.guidance", "0.5"]),
        ({"sampling": {"guidance": float("nan")}}, ["sampling.guidance", "nan"]),
        ({"sampling": {"guidance": float("inf")}}, ["sampling.guidance", "inf"]),
        ({"probes": {"penalties": [float("inf")]}}, ["probes.penalties", "inf"]),
        ({"probes": {"penalties": [0.1, 0.1]}}, ["probes: penalties", "0.1", "once"]),
        ({"probes": {"kinds": ["ridge", "ridge"]}}, ["probes: kinds", "ridge", "once"]),
        ({"probes": {"kinds": ["logistic"]}}, ["probes.kinds", "logistic", "add ridge"]),
        (
            {"prompts": {"items": ["a", "a", "b", "c", "d"], "samples": 3}},
            ["prompts.samples", "2 distinct prompts"],
        ),
        (
            {"prompts": {"negative": "x"}, "sampling": {"guidance": 1.0}},
            ["prompts.negative", "sampling.guidance"],
        ),
        ({"sampling": {"scheduler": "magic"}}, ["sampling.scheduler", "magic", "ddim"]),
        ({"prompts": {"items": []}}, ["prompts", "empty"]),
        ({"prompts": {"items": ["a", " "]}}, ["items[1]", "empty prompt"]),
        ({"prompts": {"items": ["same", "same"]}}, ["distinct prompts", "split"]),
        ({"prompts": {"samples": 2}}, ["prompts.samples", "2"]),
        ({"name": "../up"}, ["name", "../up", "lowercase"]),
        ({"name": "a" * 10_000}, ["name", "63"]),
        ({"name": "nul\0"}, ["name"]),
        ({"probes": {"split": {"train": 0.9}}}, ["probes.split", "make it 1"]),
        ({"probes": {"penalties": [-1.0]}}, ["probes.penalties.0", "-1"]),
        ({"labels": {"foreground": None, "depth": None, "shading": None}}, ["labels", "all off"]),
        ({"model": "tabletop"}, ["model", "tabletop"]),
    ],
)
def test_a_mistake_is_one_sentence(content, words):
    with pytest.raises(UserError) as caught:
        parse_study(content)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert word in message


def test_mistakes_of_files_and_overrides(tmp_path):
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


def test_a_labelers_name_takes_keys_on_the_command_line():
    study = load_study("poster", ["labels.depth.weights=/somewhere", "labels.class=vgg16"])
    assert study.labels.depth.name == "midas"
    assert study.labels.depth.weights == "/somewhere"


def test_overrides_are_yaml():
    study = load_study("tabletop", ["sampling.steps=20", "probes.kinds=[ridge]"])
    assert study.sampling.steps == 20
    assert study.probes.kinds == ("ridge",)


def test_samples_are_balanced_and_split_by_prompt():
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


def test_prompts_that_return_stay_in_their_split():
    study = parse_study({"prompts": {"items": ["a", "b", "c", "d", "e", "f", "g"], "samples": 20}})
    samples = make_samples(study)
    assert [s.prompt for s in samples[:8]] == ["a", "b", "c", "d", "e", "f", "g", "a"]
    assert {s.split for s in samples} == {"train", "validation", "test"}
    assert samples[0].split == samples[7].split
    assert samples[0].seed != samples[7].seed


def test_tabletop_prompts_are_distinct_while_they_can_be():
    pairs = tabletop_prompts(240, 0)
    assert len(set(pairs)) == 240
    assert all(category in prompt for prompt, category in pairs)
