"""Numbers of a study: every numeric key of the schema refuses what has no meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.spec import Intervention, parse_intervention
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.schema import Study

UNBOUNDED = {"images.missing.depth"}
"""Maps may mark unmeasured pixels by any number, such as -3.4e38."""

LARGEST = 2**63 - 1
"""No number of a study is larger, since flow parameters and stored seeds have 64 bits."""


def numeric_keys(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Dotted keys of all numbers in a JSON schema, each with its part of the schema.

    A list is given as ``key[]``, and a mapping as the key of one of its values.
    """

    def walk(part: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        for branch in part.get("anyOf", []):
            yield from walk(branch, key)
        kinds = part.get("type")
        if kinds in ("integer", "number"):
            yield key, part
        elif kinds == "array":
            yield from walk(part.get("items", {}), f"{key}[]")
        elif kinds == "object":
            for name, value in part.get("properties", {}).items():
                yield from walk(value, f"{key}.{name}".lstrip("."))
            if isinstance(extra := part.get("additionalProperties"), dict):
                yield from walk(extra, f"{key}.depth")

    return walk(schema, "")


STUDY = dict(numeric_keys(Study.model_json_schema()))
INTERVENTION = dict(numeric_keys(Intervention.model_json_schema()))

VALUES = [
    *(math.nan, math.inf, -math.inf, 1e30, -1e30, -1, -0.5, 0, 0.5, 1e-320),
    *(10**30, 10**400, 2**64, int("f" * 4500, 16)),
    *(True, False, [], {}),
    *("7", "7.5", "nan", "1e400", "0x10", "", "1" * 5000),
]


def refused(parse: Callable[[dict[str, Any]], Any], content: dict[str, Any]) -> tuple[str, Any]:
    """Message of the refusal, or an empty one and the parsed settings."""
    try:
        return "", parse(content)
    except UserError as error:
        return str(error), None


def content_with(key: str, value: Any) -> dict[str, Any]:
    """Content of a study in which one key has a value; ``images`` gets its folder."""
    content: dict[str, Any] = {}
    if key.startswith("images"):
        content = {"source": "images", "images": {"folder": "/nowhere"}}
    *path, last = key.split(".")
    part = content
    for name in path:
        part = part.setdefault(name, {})
    part[last.removesuffix("[]")] = [value] if last.endswith("[]") else value
    return content


def stored(model: Any, key: str) -> Any:
    for name in key.split("."):
        model = model[name.removesuffix("[]")]
    return model[0] if key.endswith("[]") else model


def test_numeric_keys_are_found_in_the_schema():
    assert {"sampling.guidance", "probes.penalties[]", "images.missing.depth"} <= STUDY.keys()
    assert {"prompts.samples", "bootstrap.level", "execution.gpus_per_worker"} <= STUDY.keys()
    assert {"targets[].dx", "learning_rate", "chosen[]"} <= INTERVENTION.keys()


@pytest.mark.parametrize("key", sorted(STUDY.keys() - UNBOUNDED))
def test_numeric_key_of_a_study_has_both_bounds(key):
    part = STUDY[key]
    assert {"minimum", "exclusiveMinimum"} & part.keys()
    assert {"maximum", "exclusiveMaximum"} & part.keys()


@pytest.mark.parametrize("key", sorted(STUDY))
def test_numeric_key_of_a_study_takes_meaningful_numbers_only(key):
    whole = STUDY[key]["type"] == "integer"
    for value in VALUES:
        message, study = refused(parse_study, content_with(key, value))
        if message:
            assert key.partition(".")[0] in message
            assert len(message) < 400
            assert "\n" not in message
            continue
        number = stored(study.model_dump(by_alias=True), key)
        assert type(number) is (int if whole else float)
        assert type(value) in ((int,) if whole else (int, float)), value
        assert number == (value if whole else float(value))
        assert math.isfinite(number)
        assert abs(number) <= LARGEST or key in UNBOUNDED, value


@pytest.mark.parametrize("key", sorted(INTERVENTION))
def test_numeric_key_of_an_intervention_takes_meaningful_numbers_only(key):
    for value in VALUES:
        content = content_with(key, value)
        if key.startswith("targets"):
            content = {"targets": ({key.rpartition(".")[2]: value},)}
        message, settings = refused(parse_intervention, content)
        if message:
            assert len(message) < 400
            assert "\n" not in message
            continue
        assert type(value) in (int, float), value
        assert abs(value) <= 1e6 or (key == "seed" and value <= LARGEST), value
        if not key.startswith("targets"):
            assert stored(settings.model_dump(), key) == value


@pytest.mark.parametrize(
    ("text", "number"), [("1e1", 10.0), ("1e+2", 100.0), ("25.e-1", 2.5), ("1E1", 10.0)]
)
def test_a_number_with_an_exponent_is_no_text(text, number):
    """YAML 1.1 reads ``1e1`` as text, since it has no dot."""
    assert parse_study({"sampling": {"guidance": text}}).sampling.guidance == number
    assert parse_study({"probes": {"penalties": [text]}}).probes.penalties == (number,)


@pytest.mark.parametrize(
    ("resamples", "level", "fix"),
    [(1000, 0.9999, 20_000), (100, 0.99, 200), (1000, 0.999, 2000)],
)
def test_bootstrap_has_resamples_beyond_its_interval(resamples, level, fix):
    with pytest.raises(UserError, match=f"bootstrap: {resamples} .* raise resamples to {fix},"):
        parse_study({"bootstrap": {"resamples": resamples, "level": level}})
    settings = {"resamples": fix, "level": level}
    assert parse_study({"bootstrap": settings}).bootstrap.resamples == fix


def test_numbers_without_a_map_are_refused_by_their_own_names():
    content = {
        "properties": {"length": {"kind": "number", "labeler": "a_module:length"}},
        "labels": dict.fromkeys(("foreground", "depth", "shading")),
    }
    with pytest.raises(
        UserError, match=r"numbers per image \(length\) are read beside.*Fix: name a"
    ):
        parse_study(content)
