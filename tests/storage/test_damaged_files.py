"""Files of a run that are gone, cut or not JSON: one sentence from every reader, nothing erased."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_helpers import assert_same, carry_out, small_study
from tiers import rest_slow
from zarr.storage import LocalStore

import ldmprobe as lp
from ldmprobe_core.analysis.compare import compare
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report.build import rebuild_report
from ldmprobe_core.errors import LdmprobeError, RunError, UserError
from ldmprobe_core.interventions.results import read_intervention, read_intervention_summary
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.nodes import consolidated_metadata
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture
def copy(whole, tmp_path):
    """The same run elsewhere, to be damaged."""
    target = tmp_path / "runs" / Path(whole.url).name
    shutil.copytree(whole.url, target)
    return Run(str(target))


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def fill_with_noise(path):
    path.write_bytes(bytes(range(256)))


READERS = {
    "verify": lambda run: list(find_corrupt_chunks(run)),
    "report": rebuild_report,
    "show": load_summary,
    "compare": lambda run: compare([run, run]),
}


@pytest.mark.parametrize("harm", [remove, cut, empty, fill_with_noise])
@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("zarr.json", "verify"),
        ("progress/probed/zarr.json", "report"),
        ("scores/depth/score/zarr.json", "report"),
        ("scores/depth/score/zarr.json", "compare"),
        pytest.param("labels/zarr.json", "report", marks=pytest.mark.slow),
        ("samples/prompt/zarr.json", "report"),
        ("summary.json", "show"),
        ("summary.json", "compare"),
        ("study.json", "report"),
    ],
)
def test_a_damaged_file_is_one_sentence(copy, harm, name, reader):
    harm(Path(copy.url) / name)
    with pytest.raises(LdmprobeError) as caught:
        READERS[reader](Run(copy.url))
    sentence = str(caught.value)
    assert copy.url in sentence
    assert name.rpartition("/")[2] in sentence
    assert "\n" not in sentence
    assert "Fix: " in sentence or "unfinished" in sentence


@pytest.mark.parametrize("harm", rest_slow([cut, empty, fill_with_noise], (0,)))
def test_report_writes_a_damaged_summary_again(copy, harm):
    path = Path(copy.url) / "summary.json"
    before = load_summary(copy).properties
    harm(path)
    rebuild_report(Run(copy.url))
    assert load_summary(Run(copy.url)).properties == before


@pytest.mark.parametrize(
    "name",
    ["samples/prompt", "samples/seed", "scores/depth/kind", "labels/depth", "probes/" + LAYER],
)
def test_open_does_not_read_holes_as_values(copy, name):
    node = Path(copy.url) / name
    for chunk in [p for p in node.rglob("*") if p.is_file() and "/c/" in str(p)]:
        chunk.unlink()
    group = name if name.startswith("probes") else name.rpartition("/")[0]
    with pytest.raises(CorruptChunkError, match="is missing"):
        Run(copy.url).open(group).load()


def test_a_lost_prompt_is_never_an_empty_prompt(copy):
    (Path(copy.url) / "samples/prompt/c/0").unlink()
    with pytest.raises(CorruptChunkError, match="samples/prompt/c/0 is missing"):
        _ = Run(copy.url).samples


@pytest.mark.parametrize(
    "lost",
    [
        "activations",
        f"activations/{LAYER}",
        f"activations/{LAYER}/activation/zarr.json",
        "labels/zarr.json",
        "scores",
        "images/image",
        "progress",
    ],
)
def test_verify_misses_what_was_laid_out(copy, whole, lost):
    remove(Path(copy.url) / lost)
    damage = list(find_corrupt_chunks(Run(copy.url)))
    named = lost if lost.endswith("zarr.json") else f"{lost}/zarr.json"
    assert (named, "missing") in [(chunk.key, chunk.reason) for chunk in damage]


@pytest.mark.parametrize(
    "lost",
    rest_slow(
        [
            f"activations/{LAYER}/activation",
            "labels/zarr.json",
            "scores/depth/score",
            "progress/probed",
            "step_images/trajectory",
        ],
        (1, 2),
    ),
)
def test_a_run_is_whole_again_after_redo(copy, whole, lost):
    remove(Path(copy.url) / lost)
    run = Run(copy.url)
    beyond_repair = clear_progress(run, find_corrupt_chunks(run)).beyond_repair
    assert beyond_repair == []
    again = carry_out(run.study, str(Path(copy.url).parent))
    assert list(find_corrupt_chunks(again)) == []
    assert_same(whole, again)


@pytest.mark.parametrize("lost", ["scores", f"activations/{LAYER}"])
def test_redo_names_lost_coordinates_which_no_unit_writes(copy, lost):
    remove(Path(copy.url) / lost)
    run = Run(copy.url)
    beyond_repair = clear_progress(run, find_corrupt_chunks(run)).beyond_repair
    assert beyond_repair
    assert all(chunk.key.startswith(lost) for chunk in beyond_repair)


def test_metadata_of_another_shape_is_damage(copy):
    path = Path(copy.url) / "scores/depth/score/zarr.json"
    document = json.loads(path.read_text())
    document["shape"][-1] += 1
    path.write_text(json.dumps(document))
    (damage,) = find_corrupt_chunks(Run(copy.url))
    assert (damage.key, damage.reason) == ("scores/depth/score/zarr.json", "changed")


def test_a_run_that_lost_its_study_is_not_erased(copy, whole):
    root = Path(copy.url)
    (root / "notes.txt").write_text("mine")
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    study = whole.study
    for name in ("study.json", "summary.json"):
        if (root / name).exists():
            (root / name).unlink()
    with pytest.raises(UserError, match=r"no study\.json\. Fix: "):
        prepare_run(study, str(root.parent))
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == {
        path: data
        for path, data in before.items()
        if path.name not in ("study.json", "summary.json")
    }


def test_files_of_others_stay_where_a_run_is_created(whole, tmp_path):
    study = whole.study
    folder = tmp_path / study.run_name
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    prepare_run(study, str(tmp_path))
    assert (folder / "notes.txt").read_text() == "mine"
    assert Run(str(folder)).exists
    assert not (folder / "creating.json").exists()


def test_an_interrupted_creation_is_repeated_over_its_own_files(whole, tmp_path, monkeypatch):
    study = whole.study
    write_many = Location.write_many

    def write_half(self, files):
        write_many(self, dict(list(files.items())[: len(files) // 2]))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Location, "write_many", write_half)
        with pytest.raises(KeyboardInterrupt):
            prepare_run(study, str(tmp_path))
    assert (tmp_path / study.run_name / "creating.json").exists()
    again = carry_out(study, str(tmp_path))
    assert_same(whole, again)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EDQUOT, "no space is left"),
        (errno.EROFS, "cannot be written to"),
        (errno.EACCES, "cannot be written to"),
    ],
)
@pytest.mark.parametrize("place", ["chunk", "file"])
def test_a_full_or_read_only_disk_is_one_sentence(copy, monkeypatch, code, expected, place):
    run = Run(copy.url)
    run.progress.clear("generated", 0)

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    if place == "chunk":
        monkeypatch.setattr(LocalStore, "set", refuse)
        write = lambda: generate_batch(run.url, 0)  # noqa: E731
    else:
        monkeypatch.setattr(os, "replace", refuse)
        write = lambda: run.location.write_text("summary.json", "{}")  # noqa: E731
    with pytest.raises(UserError, match=expected) as caught:
        write()
    assert "Fix: " in str(caught.value)
    assert run.progress.count("generated", 0) == 0


def test_scores_of_a_running_study_read_as_nan(tiny_model, tmp_path):
    run = prepare_run(small_study("fresh", tiny_model, 10), str(tmp_path))
    assert np.isnan(lp.open_run(run.url).scores("depth").values).all()
    assert np.isnan(lp.open_run(run.url).activations(LAYER).values).all()


def test_metadata_error_of_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"zarr\.json is missing"):
        Run(str(tmp_path)).read("scores/depth", "score")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
@pytest.mark.parametrize(
    "name",
    [
        "summary.json",
        "study.json",
        "zarr.json",
        "edits/a/summary.json",
        "edits/a/intervention.json",
    ],
)
def test_any_bytes_in_a_json_file_are_read_or_refused(name, data, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(data)
    run = Run(str(tmp_path))
    read = {
        "summary.json": lambda: load_summary(run),
        "study.json": lambda: run.study,
        "zarr.json": lambda: consolidated_metadata(run.location),
        "edits/a/summary.json": lambda: read_intervention_summary(run, "a"),
        "edits/a/intervention.json": lambda: read_intervention(run, "a"),
    }[name]
    with pytest.raises(LdmprobeError) as caught:
        read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "nodes",
    [
        [], {}, {"a": 1}, {"a": {}}, {"a": {"node_type": "picture"}}, {"": {"node_type": "group"}},
        {"../a": {"node_type": "group"}}, {"/etc": {"node_type": "array"}},
    ],
)  # fmt: skip
def test_consolidated_metadata_refuses_what_no_run_holds(tmp_path, nodes):
    document = {"node_type": "group", "consolidated_metadata": {"metadata": nodes}}
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(RunError, match=r"zarr\.json, which lists the run's arrays, is missing or"):
        consolidated_metadata(Location(str(tmp_path)))


def test_a_deeply_nested_study_is_one_sentence(tmp_path):
    (tmp_path / "study.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match=r"study\.json is truncated or not JSON"):
        _ = Run(str(tmp_path)).study


@pytest.mark.parametrize("changes", [{"prompts": {"seed": 8}}, {"sampling": {"steps": 2}}])
def test_a_study_of_another_run_is_one_sentence(copy, changes):
    path = Path(copy.url) / "study.json"
    content = json.loads(path.read_text())
    for section, values in changes.items():
        content[section] |= values
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"study\.json has the hash .* was created for .* Fix: "):
        _ = Run(copy.url).study


def test_read_and_open_refuse_a_hole_in_every_array(copy):
    root, run = Path(copy.url), Run(copy.url)
    nodes = [path for path in root.rglob("zarr.json") if path.parent != root]
    arrays = [p.parent for p in nodes if json.loads(p.read_text())["node_type"] == "array"]
    assert len(arrays) > 50
    for array in arrays:
        group, _, name = array.relative_to(root).as_posix().rpartition("/")
        chunk = sorted(path for path in (array / "c").rglob("*") if path.is_file())[-1]
        data = chunk.read_bytes()
        chunk.unlink()
        for read in (lambda g, n: run.read(g, n), lambda g, n: run.open(g)[n].values):
            with pytest.raises(CorruptChunkError) as caught:
                read(group, name)
            expected = chunk.relative_to(root).as_posix()
            assert (caught.value.key, caught.value.reason) == (expected, "missing")
        chunk.write_bytes(data)


def test_consolidate_does_not_forget_a_lost_group(copy):
    root = Path(copy.url)
    before = (root / "zarr.json").read_bytes()
    (root / "labels/zarr.json").unlink()
    with pytest.raises(RunError, match=r"labels/zarr\.json is missing"):
        Run(copy.url).consolidate()
    assert (root / "zarr.json").read_bytes() == before


def test_probe_of_a_complete_cell_is_not_read_from_holes(copy):
    (Path(copy.url) / f"probes/{LAYER}/weight/c/0/0/1/0").unlink()
    with pytest.raises(CorruptChunkError, match="weight/c/0/0/1/0 is missing"):
        lp.open_run(copy.url).probe("depth", 2, LAYER)
    assert lp.open_run(copy.url).probe("depth", 1, LAYER).weight.shape
