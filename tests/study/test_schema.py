"""Schema of a study: hash, JSON, and mistakes told in one sentence."""

import json

import pytest
from run_helpers import statistics_study

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.schema import Study


def test_study_hash_depends_only_on_what_decides_the_result():
    study = Study()
    assert study.hash == Study().hash
    assert study.hash == parse_study({"execution": {"workers": 7, "runner": "dask"}}).hash
    for other in (
        {"sampling": {"batch": 8}},
        {"sampling": {"threads": 2}},
        {"prompts": {"seed": 1}},
        {"controls": {"permuted_weights": False}},
        {"controls": {"permuted_weights": False, "random_weights": True}},
        {"name": "other"},
    ):
        assert parse_study(other).hash != study.hash


def test_random_weights_take_the_place_of_permuted_ones():
    off = parse_study({"controls": {"random_weights": False}})
    assert off.hash == parse_study({}).hash
    assert "random_weights" not in off.to_json()
    study = parse_study({"controls": {"permuted_weights": False, "random_weights": True}})
    assert study.controls.untrained.samples == 160
    assert [c.name for c in study.conditions if study.controls.enabled(c.name)] == [
        "probe", "shuffled_labels", "random_weights",
    ]  # fmt: skip
    assert parse_study(json.loads(study.to_json())) == study
    with pytest.raises(UserError, match=r"random_weights and permuted_weights are both on.* Fix: "):
        parse_study({"controls": {"random_weights": True}})


def test_study_survives_its_own_json():
    study = parse_study({"prompts": {"items": ["a", "b", "c"]}, "labels": {"class": None}})

    assert parse_study(json.loads(study.to_json())) == study


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"sampling": {"step": 3}}, ["sampling.step", "not a key", "steps"]),
        ({"prompts": {"items": ["a", "b", "c\0d"]}}, ["prompts.items[2] holds a character"]),
        ({"prompts": {"negative": "\ud800"}}, ["prompts.negative holds a character"]),
        ({"images": {"folder": "a\0b"}}, ["images.folder holds a character"]),
        (
            {"execution": {"address": "tcp://a:1"}},
            ["address is a key of the runner dask", "set runner to dask"],
        ),
        ({"execution": {"gpus_per_worker": 1}}, ["gpus_per_worker is a key of", "runner to dask"]),
        (
            {"execution": {"runner": "dask", "address": "tcp://a:1", "cluster": "b.yaml"}},
            ["address and cluster are both given"],
        ),
        ({"prompt": {}}, ["prompt", "not a key", "prompts"]),
        ({"sampling": {"steps": 0}}, ["sampling.steps", "0", "too small. Fix: give 1 or more"]),
        ({"sampling": {"steps": "many"}}, ["sampling.steps", "many", "a whole number"]),
        ({"sampling": {"steps": True}}, ["sampling.steps", "true"]),
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
        (
            {"prompts": {"items": ["same", "same"]}},
            ["prompts.items gives 1 distinct prompt,", "3 different"],
        ),
        (
            {"prompts": {"items": ["a", "b", "c"], "samples": 2}},
            ["prompts.samples gives 2 distinct"],
        ),
        ({"probes": {"kinds": ["logistic"]}}, ["or set labels.depth and labels.shading to null"]),
        ({"prompts": {"samples": 2}}, ["prompts.samples", "2"]),
        ({"name": "../up"}, ["name", "../up", "lowercase"]),
        ({"name": "a" * 10_000}, ["name", "63"]),
        ({"name": "nul\0"}, ["name"]),
        ({"probes": {"split": {"train": 0.9}}}, ["probes.split", "make it 1"]),
        ({"probes": {"penalties": [-1.0]}}, ["probes.penalties.0", "-1"]),
        (
            {"labels": {"foreground": None, "depth": None, "shading": None}},
            ["labels", "all null", "at least one of these keys, or maps for maps beside"],
        ),
        ({"model": "tabletop"}, ["model", "tabletop"]),
        ({"prompts": {"content_hash": "a"}}, ["content_hash is given without files"]),
    ],
)
def test_study_mistake_is_one_sentence(content, words):
    with pytest.raises(UserError) as caught:
        parse_study(content)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"probes": {"kinds": ["ridge", "logistic"]}},
            r"logistic probes need stored activations\. Fix: set probes",
        ),
        ({"probes": {"kinds": ["adam"]}}, "adam probes need stored activations"),
        (
            {"controls": {"mlp": True}},
            "set controls.mlp to false, or capture.keep",
        ),
        ({"sampling": {"batch": 2}}, "sampling.batch is 2.*set sampling.batch to 3 or more"),
        ({"capture": {"keep": "sums"}}, "capture.keep"),
        ({"capture": {"accumulators": 0}}, "capture.accumulators"),
    ],
)
def test_keep_statistics_refuses_what_it_cannot_fit(tiny_model, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        statistics_study(tiny_model, "statistics", **changes)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"prompts": {"items": {"a", "b", "c"}}}, "prompts.items"),
        ({"capture": {"layers": {"blocks", "resnets"}}}, "capture.layers"),
        ({"probes": {"penalties": frozenset({0.1, 1.0})}}, "probes.penalties"),
    ],
)
def test_study_refuses_sets_whose_order_differs_between_processes(content, key):
    with pytest.raises(UserError, match=rf"{key} is a set, which has no order\. Fix: give a list"):
        parse_study(content)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"model": {"source": "a/" + "b" * 300}}, "model.source"),
        ({"prompts": {"files": "x/" * 3000}}, "prompts.files"),
        ({"prompts": {"files": {"train": "a" * 300, "test": "b"}}}, "prompts.files.train"),
        ({"source": "images", "images": {"folder": "é" * 200}}, "images.folder"),
        ({"labels": {"depth": {"name": "midas", "weights": "w" * 256}}}, "labels.depth.weights"),
        ({"execution": {"runner": "dask", "cluster": "c" * 256}}, "execution.cluster"),
    ],
)
def test_study_refuses_paths_that_no_file_system_takes(content, key):
    with pytest.raises(UserError, match=rf"{key} is too long for a path .*Fix") as caught:
        parse_study(content)
    assert len(str(caught.value)) < 300
    prompt = "a long prompt " * 500
    assert parse_study({"prompts": {"items": [prompt, "b", "c"]}}).prompts.items[0] == prompt
