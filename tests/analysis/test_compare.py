"""Runs side by side: paired differences against a loop; the commands that read finished runs."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from run_helpers import carry_out, conclude

from flows import cli
from ldmprobe_core.analysis.compare import (
    compare,
    difference_notes,
    differing_settings,
    require_same_definitions,
)
from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study


@pytest.fixture(scope="module")
def runs(finished_run, tmp_path_factory):
    """Two settings of one study, and one of other prompts; tests only read them."""
    place = str(tmp_path_factory.mktemp("compare"))
    made = [finished_run]
    for name, change in (
        ("two", {"sampling": {"guidance": 4.0}}),
        ("three", {"prompts": {"seed": 9}}),
    ):
        content = json.loads(finished_run.study.to_json())
        for key, parts in change.items():
            content[key] |= parts
        made.append(conclude(carry_out(parse_study({**content, "name": name}), place)))
    return made


def test_compare_pairs_differences_over_common_samples(runs):
    rows = [row for row in compare(runs[:2]) if row["property"] == "depth"]
    scores = []
    for run in runs[:2]:
        last = json.loads(run.location.read_text("summary.json"))["properties"]["depth"]["last"]
        score = run.open("scores/depth").score.sel(condition="probe", metric="spearman", step=3)
        score = score.sel(kind=last["kind"], layer=last["layer"])
        scores.append(score.values[score.split.values == "test"])
    gaps = scores[1] - scores[0]
    assert rows[1]["difference"].startswith(f"{np.nanmean(gaps):.2f} [")
    assert rows[1]["pairs"] == str(np.isfinite(gaps).sum())
    assert rows[0]["difference"] == ""


def test_compare_of_runs_without_common_samples_has_no_differences(runs):
    for row in compare([runs[0], runs[2]]):
        assert row["difference"] in ("", "–")
    with pytest.raises(UserError, match="too few to compare"):
        compare(runs[:1])


WARM = {"name": "warm", "title": "warm", "kind": "scalar", "metrics": ["spearman"]}


def declaring(run, folder, properties):
    """A copy of a run's study.json and summary.json, with other declared properties."""
    folder.mkdir()
    content = json.loads(run.location.read_text("study.json")) | {"properties": properties}
    (folder / "study.json").write_text(json.dumps(content))
    (folder / "summary.json").write_text(run.location.read_text("summary.json"))
    return Run(str(folder))


def test_compare_refuses_runs_that_define_a_property_differently(finished_run, tmp_path):
    """A process reads only one of their studies, so that no other process would do better."""
    warm, other = (
        declaring(finished_run, tmp_path / name, {"warm": WARM | change})
        for name, change in (("a", {}), ("b", {"title": "hot", "metrics": ["pearson", "rmse"]}))
    )
    with pytest.raises(UserError) as error:
        compare([warm, other])
    assert str(error.value) == (
        f"runs: {warm.url} and {other.url} define the property 'warm' differently (metrics), so "
        "their scores are not comparable. Fix: compare runs with the same definition"
    )
    with pytest.raises(UserError, match="define the property 'warm' differently"):
        cli.app(["compare", warm.url, other.url])


def test_compare_refuses_vectors_of_other_components(finished_run, tmp_path):
    def flow(*names):
        return {
            name: WARM | {"component": {"vector": "flow", "index": i, "size": len(names)}}
            for i, name in enumerate(names)
        }

    one = declaring(finished_run, tmp_path / "a", flow("flow_x", "flow_y"))
    two = declaring(finished_run, tmp_path / "b", flow("flow_east", "flow_north"))
    with pytest.raises(UserError, match=r"the property 'flow' differently \(component\)"):
        compare([one, two])
    require_same_definitions([one, one])


def test_differing_settings_names_the_keys_of_another_study(runs):
    assert differing_settings(runs[0], runs[0]) == {}
    assert differing_settings(runs[0], runs[1]) == {"sampling.guidance": (2.0, 4.0)}
    assert [row["differs in"] for row in compare(runs)[:3]] == [
        "",
        "sampling.guidance",
        "prompts.seed",
    ]
    (note,) = difference_notes(runs[:2])
    assert f"{runs[0].url} and {runs[1].url} are of different studies" in note
    assert note.endswith("sampling.guidance (2.0 and 4.0)")


@pytest.mark.parametrize(
    ("change", "key", "values"),
    [
        ({"labels": {"class": None}}, "labels.class", None),
        ({"capture": {"layers": ["mid_block.*"]}}, "capture.layers", None),
        ({"images": {"folder": "b", "content_hash": "2"}}, "images.content_hash", ("1", "2")),
        ({"images": {"folder": "b", "content_hash": "1"}}, None, None),
        ({"name": "other", "execution": {"workers": 9}}, None, None),
    ],
)
def test_differing_settings_leaves_out_what_changes_no_result(runs, change, key, values):
    base = {"source": "images", "images": {"folder": "a", "content_hash": "1"}}
    pair = [Run(runs[0].url) for _ in range(2)]
    for run, content in zip(pair, (base, {**base, **change}), strict=True):
        run.study = parse_study(content)
    differing = differing_settings(*pair)
    assert list(differing) == ([] if key is None else [key])
    assert values is None or differing[key] == values


def test_differing_settings_finds_other_weights_in_the_same_folder(runs, monkeypatch):
    labelers = {"shading": "c3", "class": "d4"}
    attributes = iter(
        [
            {"model_fingerprint": "a1", "labeler_fingerprints": {"depth": "a1", **labelers}},
            {"model_fingerprint": "b2", "labeler_fingerprints": {"depth": "b2", **labelers}},
        ]
    )
    monkeypatch.setattr(Run, "attributes", property(lambda _: next(attributes)))
    pair = [Run(runs[0].url) for _ in range(2)]
    for run in pair:
        run.study = runs[0].study
    assert differing_settings(*pair) == {
        "model weights": ("a1", "b2"), "labels.depth files": ("a1", "b2")
    }  # fmt: skip


def test_difference_notes_name_other_versions_of_packages_that_compute(runs, monkeypatch, tmp_path):
    shutil.copytree(runs[0].url, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/environments")
    pair = [Run(str(tmp_path / "run")) for _ in range(2)]
    for run, torch in zip(pair, ("2.1", "2.2"), strict=True):
        run.study, run.made_with = runs[0].study, {"torch": torch, "numpy": "2", "prefect": torch}
    monkeypatch.setattr(Run, "attributes", property(lambda run: {"versions": run.made_with}))
    (note,) = difference_notes(pair)
    assert note.endswith(
        "were made with other versions, which may change results: torch (2.1 and 2.2)"
    )
    assert difference_notes([pair[0], pair[0]]) == ()


@pytest.mark.parametrize("change", [{"step": 999}, {"layer": "nope"}])
def test_compare_refuses_a_summary_of_a_cell_without_scores(runs, tmp_path, change):
    copy = tmp_path / "run"
    shutil.copytree(runs[0].url, copy)
    summary = json.loads((copy / "summary.json").read_text())
    summary["properties"]["depth"]["last"] |= change
    (copy / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RunError, match=r"summary\.json names step .* for depth, .*Fix: `ldmprobe"):
        compare([runs[1], Run(str(copy))])


@pytest.mark.parametrize("digest", ["same", "other"])
def test_compare_pairs_source_images_by_their_content(runs, digest):
    """Two folders may hold different images under the same file names."""
    pair = [Run(runs[0].url) for _ in range(2)]
    for run, content in zip(pair, ("same", digest), strict=True):
        run.samples = [
            replace(one, source_image=f"{one.index}.png", source_digest=content)
            for one in run.samples
        ]
    pairs = {row["pairs"] for row in compare(pair)[1::2]}
    assert ("0" in pairs) == (digest == "other")


def test_cli_commands_that_read_finished_runs(runs, tmp_path, capsys, monkeypatch):
    one, two = Run(str(tmp_path / "one")), runs[1]
    shutil.copytree(runs[0].url, one.url)

    def call(*words):
        monkeypatch.setattr("sys.argv", ["ldmprobe", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    code, out, _ = call("compare", one.url, two.url, "--json")
    assert code == 0
    assert len(json.loads(out)) == 6
    assert {row["differs in"] for row in json.loads(out)} == {"", "sampling.guidance"}
    code, out, _ = call("compare", one.url, two.url)
    assert code == 0
    assert re.search(r"^difference +-?[0-9.]+ \[", out, re.MULTILINE)
    assert max(len(line) for line in out.splitlines() if not line.startswith("note: ")) <= 80
    assert "are of different studies" in out
    assert "sampling.guidance (2.0 and 4.0)" in out
    assert "different studies" not in call("compare", one.url, one.url)[1]
    before = json.loads(one.location.read_text("summary.json"))
    heldout = int(one.open("scores/depth").sample.values[0])
    code, out, _ = call("report", one.url, "--samples", str(heldout))
    assert code == 0
    after = json.loads(one.location.read_text("summary.json"))
    assert after.pop("bytes") > 0
    del before["bytes"]
    assert after == before
    assert f"sample-{heldout:05d}.svg" in one.location.read_text("report/index.html")
    opened = []
    monkeypatch.setattr("typer.launch", opened.append)
    assert call("open", one.url)[0] == 0
    assert opened[0].startswith("file://")
    assert opened[0].endswith("report/index.html")
    trained = int(np.flatnonzero(one.open("samples").split.values == "train")[0])
    for words, told in (
        (("report", one.url, "--samples", str(trained)), "is not held out in this run"),
        (("report", one.url, "--samples", "three"), "--samples is 'three'"),
        (("compare", one.url), "too few to compare"),
        (("compare", one.url, one.url + "-none"), "holds no summary.json"),
        (("open", one.url + "-none"), "holds no summary.json"),
    ):
        code, _, err = call(*words)
        assert code == 1
        assert told in " ".join(err.split())
