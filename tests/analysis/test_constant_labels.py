"""Labels that are the same in every test image, of which probes can show nothing."""

import csv
import io
import json

import numpy as np
import pytest
from run_helpers import carry_out

from ldmprobe_core.analysis.exports import scores_csv
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.analysis.report.text import best_rows, headline
from ldmprobe_core.probing.label_set import LabelSet

MODULE = """
import numpy as np

def nothing(images):
    return np.zeros(images.shape[:3], np.float32)

def everything(images):
    return np.ones(images.shape[:3], np.float32)

def sky(images):
    return np.full(images.shape[:3], 1)

def half(images):
    return images.astype(np.float32).mean(-1) / 255
"""


def label_set_of(maps, held=(2, 3, 4), validation=(2,)):
    none = np.array([], int)
    parts = [none, *(np.array(part) for part in (validation, held))]
    return LabelSet({"foreground": maps}, {"foreground": maps.mean(0)}, *parts)


def test_constant_is_the_only_value_of_the_measured_pixels_of_test_samples():
    maps = np.zeros((5, 2, 3), bool)
    assert label_set_of(maps).constant("foreground") == 0
    maps[2] = True  # a validation sample
    assert label_set_of(maps).constant("foreground") == 0
    maps[4, 1, 2] = True
    assert label_set_of(maps).constant("foreground") is None
    partly = np.full((5, 2, 3), np.nan)
    assert label_set_of(partly).constant("foreground") is None
    partly[4, 0, 1] = 0.5
    assert label_set_of(partly).constant("foreground") == 0.5
    partly[3, 0, 1] = 0.25
    assert label_set_of(partly).constant("foreground") is None


@pytest.mark.parametrize(
    ("labeler", "clause"),
    [
        ("nothing", "all 5 label masks of the test images are empty"),
        ("everything", "all labels of the 5 test images have the same value (1)"),
    ],
)
def test_labels_that_do_not_vary_give_no_score(labeler, clause, own_module, tiny_study, tmp_path):
    own_module("constant_labelers", MODULE)
    study = tiny_study(
        properties={
            "stuff": {
                "kind": "classes",
                "classes": ["ground", "sky"],
                "labeler": "constant_labelers:sky",
            }
        },
        labels={
            "foreground": f"constant_labelers:{labeler}",
            "depth": "constant_labelers:half",
            "shading": None,
            "class": None,
        },
        probes={"kinds": ["ridge"]},
        controls={"permutations": 2},
    )
    run = carry_out(study, str(tmp_path / "runs"))
    build_report(run, {})
    summary = load_summary(run)
    assert summary.samples["test"] == 5

    def means(value, key=""):
        """All numbers called ``mean`` in a nested record, by key."""
        if isinstance(value, dict):
            if value.get("mean") is not None:
                yield key, value["mean"]
            for name, one in value.items():
                yield from means(one, f"{key}.{name}")
        elif isinstance(value, list):
            for one in value:
                yield from means(one, key)

    page = run.location.read_text("report/index.html")
    warnings = page.partition('id="warnings"')[2].partition("<h2")[0]
    assert "None: all activations" not in warnings
    assert f"foreground: {clause}, so nothing is measured." in warnings
    assert "stuff_sky: all labels of the 5 test images" in warnings

    for prop in ("foreground", "stuff_ground", "stuff_sky"):
        record = summary.properties[prop]
        assert list(means(json.loads(record.model_dump_json()))) == []
        assert record.undefined.best == 5
        assert record.controls.shuffled_labels.p is None
    assert summary.properties["depth"].best.score.mean is not None
    assert list(means(json.loads(summary.class_maps["stuff"].model_dump_json()))) == []

    sentences = {line.partition(":")[0]: line for line in headline(summary)}
    assert sentences["Foreground"] == f"Foreground: {clause}, so nothing is measured."
    assert sum("so nothing is measured" in line for line in sentences.values()) == 3
    assert "at the last step" in sentences["Depth"]
    rows = {row["property"]: row for row in best_rows(summary)}
    assert "1.00" not in json.dumps(rows["foreground"])
    page = run.location.read_text("report/index.html")
    assert clause in page

    exported = csv.DictReader(io.StringIO(scores_csv(run, ["foreground", "depth"])))
    assert {row["property"] for row in exported} == {"depth"}
