"""Keys of Prefect artifacts, against Prefect's own check of them."""

import json

import prefect.artifacts
import pytest
from prefect.artifacts import Artifact

import tasks.artifacts

CREATED = ("table", "markdown", "image", "link")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heatmap-fog_depth-my.study", "heatmap-fog-depth-my-study"),
        ("intervention-normals_x-mean_projection", "intervention-normals-x-mean-projection"),
        ("best-cells-Study 2_", "best-cells-study-2"),
    ],
)
def test_artifact_key_of_any_name_is_accepted_by_prefect(text, expected):
    key = tasks.artifacts.artifact_key(text)
    assert Artifact(type="markdown", key=key).key == key == expected


def test_results_of_a_study_with_an_underscore_in_its_name_are_published(finished_run, monkeypatch):
    keys = []
    for name in CREATED:
        assert hasattr(prefect.artifacts, f"create_{name}_artifact")
        monkeypatch.setattr(
            tasks.artifacts,
            f"create_{name}_artifact",
            lambda key, **_: keys.append(Artifact(type="markdown", key=key).key),
        )
    record = json.loads(finished_run.location.read_text("summary.json")) | {"study": "My_study"}
    tasks.artifacts.publish(record, finished_run.url)
    heatmaps = [f"heatmap-{prop}-my-study" for prop in record["properties"]]
    assert keys == ["best-cells-my-study", "summary-my-study", *heatmaps, "report-my-study"]
