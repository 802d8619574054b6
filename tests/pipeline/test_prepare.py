"""Preparing a run: once, whole, with its study and the fingerprint of its model."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

import ldmprobe_core
from flows import cli
from ldmprobe import run_study
from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.prepare import code_digest, prepare_run, run_in
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run


def test_prepare_run_records_study_and_versions(finished_run):
    again = Run(finished_run.url).study
    assert again.hash == finished_run.study.hash
    attributes = finished_run.attributes
    assert attributes["study_hash"] == again.hash
    assert {"torch", "diffusers", "zarr", "python"} <= set(attributes["versions"])


@pytest.mark.parametrize(
    ("last", "words"), [("ball", None), ("balll", "'balll'"), ("", "knows, so")]
)
def test_prepare_run_notes_a_class_of_a_prompt_that_the_labeler_does_not_know(
    tiny_study, tmp_path, last, words
):
    """One of them is enough for the class curves to follow the classes of finished images."""
    colors = ("red", "blue", "green", "yellow", "black", "white")
    rows = [f"a {color} ball,1,{last if color == 'white' else 'ball'}" for color in colors]
    (tmp_path / "prompts.csv").write_text("\n".join(["prompt,seed,class", *rows]))
    study = tiny_study(prompts={"files": str(tmp_path / "prompts.csv"), "samples": None})
    notes = prepare_run(study, str(tmp_path / "runs")).attributes["notes"]
    found = [note for note in notes if " no class that the class labeler knows" in note]
    assert len(found) == (words is not None)
    assert all(note.startswith("1 of 6 images") and words in note for note in found)


def test_prepare_run_in_six_threads_at_once_creates_one_run(finished_run, tmp_path):
    study = finished_run.study
    with ThreadPoolExecutor(6) as pool:
        runs = list(pool.map(lambda _: prepare_run(study, str(tmp_path)), range(6)))
    assert len({run.location.read_text("identity") for run in runs}) == 1
    generate_batch(runs[0].url, 0)
    prepare_run(study, str(tmp_path))
    assert runs[0].progress.is_done("generated", 0)
    assert [path.name for path in tmp_path.iterdir()] == [study.run_name]


def test_prepare_run_takes_execution_settings_from_the_resuming_study(finished_run, tmp_path):
    study = finished_run.study
    run = prepare_run(study, str(tmp_path))
    elsewhere = study.model_copy(
        update={"execution": study.execution.model_copy(update={"device": "cpu", "workers": 7})}
    )
    assert prepare_run(elsewhere, str(tmp_path)).study.execution.workers == 7
    assert run.study.execution.device == "cpu"


def test_prepare_run_cut_off_leaves_no_run_and_can_be_repeated(tiny_study, tmp_path, monkeypatch):
    write_text = Location.write_text

    def cut_off(self, name, text):
        if name == "study.json":
            raise OSError("cut off")
        write_text(self, name, text)

    monkeypatch.setattr(Location, "write_text", cut_off)
    with pytest.raises(OSError, match="cut off"):
        prepare_run(tiny_study(), str(tmp_path))
    monkeypatch.undo()
    url = f"{tmp_path}/{tiny_study().run_name}"
    assert not Run(url).exists
    prepare_run(tiny_study(), str(tmp_path))
    assert Run(url).exists


def test_a_lost_or_damaged_identity_is_replaced_when_the_run_is_resumed(finished_run, tmp_path):
    study = finished_run.study
    run = prepare_run(study, str(tmp_path))
    first = run.location.read_text("identity")
    assert prepare_run(study, str(tmp_path)).location.read_text("identity") == first
    for damaged in (None, b"", b"\xff\xfe"):
        if damaged is None:
            run.location.remove("identity")
        else:
            run.location.write_bytes("identity", damaged)
        generate_batch(prepare_run(study, str(tmp_path)).url, 0)
        found = run.location.read_text("identity")
        assert len(found) == 32
        assert found != first


def test_a_run_under_the_name_of_another_study_is_left_alone(finished_run, tmp_path):
    study = finished_run.study
    sampling = study.sampling.model_copy(update={"guidance": 3.0})
    other = study.model_copy(update={"sampling": sampling})
    folder = tmp_path / other.run_name
    shutil.copytree(finished_run.url, folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for _ in ("finished", "not finished"):
        with pytest.raises(UserError, match=r"holds the run of another study .* Fix: give it its"):
            run_study(other, str(tmp_path), progress=False)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
        before.pop(folder / "summary.json", None)
        (folder / "summary.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("labeler_fingerprints", None), ("versions", {"torch": 2}), ("log_snr", "1"), ("notes", [1]),
     ("study_hash", 5)],
)  # fmt: skip
def test_a_damaged_attribute_of_a_run_is_one_sentence(finished_run, tmp_path, name, value):
    folder = tmp_path / "run"
    shutil.copytree(finished_run.url, folder)
    root = json.loads((folder / "zarr.json").read_text())
    root["attributes"][name] = value
    (folder / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(RunError, match=rf"zarr.json: the attribute {name}.* is damaged \(.*Fix: "):
        _ = Run(str(folder)).attributes


def test_prepare_run_refuses_a_model_with_another_fingerprint(tiny_study, tmp_path):

    study = tiny_study()
    copy = tmp_path / "model"
    shutil.copytree(study.model.source, copy)
    moved = study.model_copy(update={"model": study.model.model_copy(update={"source": str(copy)})})
    prepare_run(moved, str(tmp_path / "runs"))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UserError, match="fingerprint"):
        prepare_run(moved, str(tmp_path / "runs"))
    # A finished run is not shown as this model's either.
    run = run_in(str(tmp_path / "runs"), moved)
    run.location.write_text("summary.json", "{}")
    path = tmp_path / "moved.yaml"
    path.write_text(moved.to_json())
    with pytest.raises(UserError, match="fingerprint"):
        cli.run(str(path), str(tmp_path / "runs"), None)


def test_code_digest_changes_with_the_name_and_content_of_every_module(tmp_path, monkeypatch):
    monkeypatch.setattr(ldmprobe_core, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "part").mkdir()
    contents = {"__init__.py": "", "a.py": "x = 1", "part/b.py": "y = 2"}
    changes = [{}, {"a.py": "x = 3"}, {"part/b.py": "y = 3"}, {"part/c.py": ""},
               {"a.py": "x = 1y", "part/b.py": " = 2"}]  # fmt: skip
    digests = []
    for change in changes:
        for path, text in (contents | change).items():
            (tmp_path / path).write_text(text)
        digests.append(code_digest())
        (tmp_path / "part/c.py").unlink(missing_ok=True)
    assert len(set(digests)) == len(changes)
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "part/b.py").write_text("y = 2")
    (tmp_path / "notes.txt").write_text("no module")
    assert code_digest() == digests[0]
    assert len(digests[0]) == 12
