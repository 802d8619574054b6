"""Properties that a study declares."""

import json
import pickle

import pytest

import ldmprobe as lp
from ldmprobe_core.errors import UserError
from ldmprobe_core.probing.metrics import METRICS
from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.properties import (
    FOREGROUND,
    PROPERTIES,
    REGISTERED_METRICS,
    Property,
    map_properties,
    register_property,
)

EDITS = {"kind": "ridge", "metrics": ["spearman"], "dose": 8.0}
SUNLIT = {"kind": "mask", "labeler": "mypackage.labels:sunlit"}


@pytest.fixture(autouse=True)
def registry():
    """Restores the registered properties and metrics after each test."""
    before, scored = dict(PROPERTIES), dict(METRICS)
    yield
    PROPERTIES.clear()
    PROPERTIES.update(before)
    REGISTERED_METRICS.difference_update(METRICS.keys() - scored.keys())
    METRICS.clear()
    METRICS.update(scored)


def test_declared_property_has_the_defaults_of_its_kind():
    study = parse_study({"properties": {"sunlit": SUNLIT, "fog_depth": {"kind": "scalar"}}})
    sunlit, fog = study.properties["sunlit"], study.properties["fog_depth"]
    assert (sunlit.metrics, sunlit.drawing) == (FOREGROUND.metrics, FOREGROUND.drawing)
    assert (sunlit.map_format.two_levels, sunlit.intervention.kind) == (True, "logistic")
    assert (fog.title, fog.metrics[0], fog.intervention.kind) == ("fog depth", "spearman", "ridge")
    assert study.labels.labeler("sunlit").name == "mypackage.labels:sunlit"
    assert study.labels.labeler("fog_depth") is None


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (["pearson", "rmse"], ("rmse",)),
        (["pearson"], ("pearson",)),
        (["spearman", "spearman_partial"], ("spearman_partial", "spearman")),
    ],
)
def test_interventions_are_scored_in_metrics_of_the_property(metrics, expected):
    record = parse_study({"properties": {"fog": {"kind": "scalar", "metrics": metrics}}})
    assert record.properties["fog"].intervention.metrics == expected


def test_declaration_by_overrides_equals_one_in_the_file():
    record = {**SUNLIT, "drawing": {"colormap": "magma", "limits": [0, 2]}, "metrics": ["dice"]}
    study = load_study("tabletop", [f"properties.sunlit={json.dumps(record)}"])
    assert study.properties["sunlit"].drawing.limits == (0, 2)
    assert parse_study(json.loads(study.to_json())) == study


def test_labeler_under_labels_replaces_that_of_the_declaration():
    study = parse_study({"properties": {"sunlit": SUNLIT}, "labels": {"sunlit": "own.labels:sun"}})
    assert study.labels.labeler("sunlit").name == "own.labels:sun"


def test_hash_holds_a_declaration_only_if_it_is_used():
    plain, declared = parse_study({}), parse_study({"properties": {"sunlit": SUNLIT}})
    off = parse_study({"properties": {"sunlit": SUNLIT}, "labels": {"sunlit": None}})
    assert plain.hash == off.hash != declared.hash
    assert "properties" not in json.loads(plain.to_json())
    PROPERTIES.pop("sunlit")
    titled = parse_study({"properties": {"sunlit": {**SUNLIT, "title": "in the sun"}}})
    assert titled.hash == declared.hash
    PROPERTIES.pop("sunlit")
    scalar = parse_study({"properties": {"sunlit": {**SUNLIT, "kind": "scalar"}}})
    assert scalar.hash != declared.hash


def test_study_carries_a_registered_property_that_it_labels():
    record = register_property(Property(name="sunlit", kind="scalar", title="in the sun"))
    study = parse_study({"labels": {"sunlit": "mypackage.labels:sunlit"}})
    PROPERTIES.pop("sunlit")
    assert parse_study(json.loads(study.to_json())).properties == {"sunlit": record}
    assert "properties" not in json.loads(parse_study({}).to_json())


def test_stored_study_loads_the_package_that_offers_the_metric_of_its_property(
    tmp_path, monkeypatch
):
    (tmp_path / "lamp_labels.py").write_text(
        "from ldmprobe_core.probing.metrics import Metric, register_metric\n"
        "register_metric('lamp_error', Metric(lambda one, other: abs(one - other).sum(1)))\n"
    )
    metadata = tmp_path / "lamps-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lamps\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[ldmprobe.properties]\nlamps = lamp_labels\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    stored = {"lamps": {"kind": "scalar", "metrics": ["lamp_error"]}}
    with pytest.raises(UserError, match="has 'lamp_error', which does not score a scalar"):
        parse_study({"properties": {"fog": stored["lamps"]}})
    study = parse_study({"properties": stored})
    assert study.properties["lamps"].metrics == ("lamp_error",)


def test_pickled_study_registers_its_properties():
    pickled = pickle.dumps(parse_study({"properties": {"sunlit": SUNLIT}}))
    PROPERTIES.pop("sunlit")
    assert pickle.loads(pickled).properties["sunlit"] == PROPERTIES["sunlit"]  # noqa: S301


def test_order_of_properties_does_not_depend_on_the_order_of_registration():
    for name in ("wet", "dry"):
        parse_study({"properties": {name: {"kind": "mask"}}})
    names = map_properties()
    built_in = ("foreground", "depth", "shading", "edges", "normals_x", "normals_y", "normals_z")
    assert names[:7] == built_in
    assert {"dry", "wet"} <= set(names[7:])
    assert list(names[7:]) == sorted(names[7:])


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        (
            {"sunlit": {"kind": "maks"}},
            r"properties\.sunlit\.kind is 'maks': .*'scalar' or 'number'",
        ),
        ({"sunlit": {"labeler": "a:b"}}, r"properties\.sunlit\.kind: this key is missing\. Fix: "),
        ({"sunlit": {**SUNLIT, "metrics": ["dise"]}}, "has 'dise', which does not score a mask"),
        ({"sunlit": {**SUNLIT, "metrics": ["rmse"]}}, "has 'rmse', which does not score a mask"),
        ({"sunlit": {**SUNLIT, "metrics": []}}, r"metrics is \[\]\. Fix: choose from dice, iou"),
        ({"sunlit": {**SUNLIT, "metrics": ["iou"] * 2}}, "each once"),
        ({"sunlit": {**SUNLIT, "metrics": ["iou", "dice"]}}, "begins with 'iou'.*begin with dice"),
        ({"fog": {"kind": "scalar", "metrics": ["rmse"]}}, "begin with spearman or pearson"),
        (
            {"fog": {"kind": "scalar", "metrics": ["pearson"], "intervention": EDITS}},
            r"intervention\.metrics has 'spearman', which is not in metrics",
        ),
        ({"sunlit": {**SUNLIT, "colour": 1}}, r"sunlit\.colour is not a key .* has: name, title"),
        ({"sunlit": {**SUNLIT, "drawing": {"map": "a"}}}, r"sunlit\.drawing has: colormap, limits"),
        (
            {"sunlit": {**SUNLIT, "drawing": {"limits": [1, 1]}}},
            r"limits: the first limit is not below the second \(1, 1\)\. Fix: give the lower one",
        ),
        ({"sunlit": {**SUNLIT, "drawing": {"limits": [1, -1]}}}, r"not below the second \(1, -1\)"),
        (
            {"sunlit": {**SUNLIT, "name": "rain"}},
            r"sunlit\.name is 'rain', which is not the key sunlit\. Fix: leave its name out",
        ),
        ({"sunlit": {**SUNLIT, "labeler": 3}}, r"labels\.sunlit: this is not the name of .*\(3\)"),
        ({"sunlit": "mypackage.labels:sunlit"}, r"properties\.sunlit is 'mypackage"),
        ({"depth": {"kind": "mask"}}, "'depth': the name is taken. Fix: choose another"),
        ({"class": {"kind": "mask"}}, "'class': the name is taken"),
        ({"step": {"kind": "scalar"}}, "'step': the name is taken. Fix: choose another"),
        ({"Sun lit": {"kind": "mask"}}, "not a lowercase identifier"),
        (["sunlit"], r"properties is \['sunlit'\]"),
    ],
)
def test_wrong_declaration_is_one_sentence(properties, words):
    with pytest.raises(UserError, match=words) as caught:
        parse_study({"properties": properties})
    assert "\n" not in str(caught.value)
    assert "Fix: " in str(caught.value)


def test_second_definition_of_a_name_is_refused():
    parse_study({"properties": {"sunlit": SUNLIT}})
    assert parse_study({"properties": {"sunlit": SUNLIT}}).properties["sunlit"].kind == "mask"
    parse_study({"properties": {"sunlit": {**SUNLIT, "title": "in the sun"}}})
    assert PROPERTIES["sunlit"].title == "in the sun"
    with pytest.raises(UserError, match="taken in this process by another definition"):
        parse_study({"properties": {"sunlit": {**SUNLIT, "kind": "scalar"}}})


FLOW = {"kind": "vector", "components": ["x", "y"]}


def test_vector_becomes_its_components_with_one_labeler():
    study = parse_study({"properties": {"flow": {**FLOW, "labeler": "mypackage.labels:flow"}}})
    assert list(study.properties) == ["flow_x", "flow_y"]
    assert study.labels.labeler("flow_y").name == "mypackage.labels:flow"
    place = study.properties["flow_y"].component
    assert (place.vector, place.index, place.size) == ("flow", 1, 2)
    assert parse_study(json.loads(study.to_json())) == study
    other = parse_study({"properties": {"flow": FLOW}, "labels": {"flow": "own:flow"}})
    assert {other.labels.labeler(name).name for name in ("flow_x", "flow_y")} == {"own:flow"}
    off = parse_study({"properties": {"flow": FLOW}, "labels": {"normals": None, "flow": None}})
    assert off.hash == parse_study({}).hash


def test_order_of_components_is_part_of_the_hash():
    """Each order gives other labels, so a run must not be continued with another one."""
    hashes = set()
    for names in (["x", "y"], ["y", "x"]):
        flow = {"kind": "vector", "components": names, "labeler": "own:flow"}
        hashes.add(parse_study({"properties": {"flow": flow}}).hash)
        for name in ("flow_x", "flow_y"):
            PROPERTIES.pop(name)  # as in a new process
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("kind", "key", "of_part"),
    [("vector", "components", "scalar"), ("classes", "classes", "mask")],
)
def test_study_carries_the_components_of_a_joint_property_registered_in_python(kind, key, of_part):
    """A process that does not import the module reads the same study from its JSON."""

    @lp.property("joined", kind=kind, **{key: ["a", "b"]})
    def joined(images):
        return images[..., :2] if kind == "vector" else images[..., 0] > 9

    study = parse_study({"labels": {"joined": f"{__name__}:joined"}})
    for name in ("joined_a", "joined_b"):
        assert study.properties[name].kind == of_part
        PROPERTIES.pop(name)
    again = parse_study(json.loads(study.to_json()))
    assert (again, again.hash) == (study, study.hash)
    assert again.properties["joined_b"].component.joint == kind


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"flow": {"kind": "classes", "classes": ["x", "y"]}}, "another definition"),
        ({"flow": {**FLOW, "components": ["y", "x"]}}, "the name is taken .* another definition"),
        ({"flow": {**FLOW, "components": ["x", "y", "z"]}}, "another definition"),
        ({"flow": {**FLOW, "components": ["u", "v"]}}, "another definition"),
        ({"flow": {"kind": "mask"}}, "'flow': the name is taken"),
        ({"depth": FLOW}, "'depth': the name is taken"),
        ({"normals": FLOW}, "'normals.*': the name is taken"),
        ({"wind": {**FLOW, "components": "xy"}}, "components of wind are 'xy'. Fix: list the"),
        ({"wind": {"kind": "vector"}}, r"components of wind are \(\). Fix: "),
        ({"wind": {**FLOW, "components": ["x", "x"]}}, "two or more components"),
        ({"wind": {**FLOW, "components": ["x", 3]}}, "two or more components"),
        ({"wind": {**FLOW, "components": ["x", "y z"]}}, "not a lowercase identifier"),
        ({"wind_x": {"kind": "mask"}, "wind": FLOW}, "'wind_x': .* a component of wind. Fix: "),
        ({"wind": FLOW, "wind_x": {"kind": "mask"}}, "'wind_x': .* a component of wind. Fix: "),
        (
            {
                "wind": {**FLOW, "components": ["a_b", "c"]},
                "wind_a": {**FLOW, "components": ["b", "c"]},
            },
            "'wind_a_b': .* a component of wind_a. Fix: ",
        ),
        ({"wind": {**FLOW, "metrics": ["dice"]}}, r"wind_x: .*'dice', which does not score"),
    ],
)
def test_wrong_vector_is_one_sentence(properties, words):
    parse_study({"properties": {"flow": FLOW}})
    with pytest.raises(UserError, match=words) as caught:
        parse_study({"properties": properties})
    assert "\n" not in str(caught.value)
    assert "Fix: " in str(caught.value)
    assert not [name for name in PROPERTIES if name.startswith("wind")]  # none is left half known
