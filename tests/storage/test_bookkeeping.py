"""Records of the chunks that units have written: a chunk in another chunk's place is damage."""

import json
import shutil
from pathlib import Path

import pytest
from run_helpers import assert_same, carry_out
from tiers import rest_slow

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.bookkeeping import (
    CREATED,
    chunk_place,
    read_record,
    record_name,
    record_names,
    unit_of_record,
)
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture
def copy(finished_run, tmp_path):
    """The finished run elsewhere, to be damaged."""
    target = tmp_path / "runs" / Path(finished_run.url).name
    shutil.copytree(finished_run.url, target)
    return Run(str(target))


@pytest.mark.parametrize("index", [(3,), (1, 0), (0, 12, 7)])
def test_unit_of_record_is_the_inverse_of_record_name(index):
    name = record_name("interventions/depth-exact-ab/done", index)
    assert unit_of_record(name) == ("interventions/depth-exact-ab/done", index)


def test_records_hold_the_last_bytes_of_every_chunk_that_units_write(finished_run):
    root = Path(finished_run.url)
    recorded = read_record(finished_run.location, CREATED)
    for array in ("generated", "labeled", "probed"):
        for name in record_names(finished_run.location, f"progress/{array}"):
            recorded |= read_record(finished_run.location, name)
    chunks = {
        path.relative_to(root).as_posix(): path.read_bytes()[-4:]
        for path in root.rglob("*")
        if path.is_file() and "/c/" in path.as_posix()
    }
    marks = {key for key in chunks if key.split("/c/")[0].endswith(("ated", "labeled", "probed"))}
    assert recorded == {key: crc for key, crc in chunks.items() if key not in marks}


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("labels/depth/c/2/0/0", ("labels/depth", (2, 0, 0))),
        ("labels/c/c/2/0/0", ("labels/c", (2, 0, 0))),
        ("scores/c/score/c/0/11", ("scores/c/score", (0, 11))),
        ("scores/c/score/zarr.json", None),
        ("scores/c/zarr.json", None),
        ("labels/c/zarr.json", None),
        ("study.json", None),
    ],
)
def test_chunk_place_of_keys_in_groups_and_arrays_named_c(key, place):
    assert chunk_place(key) == place


PROPERTY_MODULE = """
import numpy as np

def tone(images):
    return images.mean(-1) / 255
"""


def test_damage_is_found_in_properties_named_as_a_folder_or_as_progress(
    tiny_study, own_module, tmp_path
):
    own_module("tones_of_theirs", PROPERTY_MODULE)
    record = {"kind": "scalar", "labeler": "tones_of_theirs:tone"}
    rest = {"foreground": None, "depth": None, "shading": None, "class": None}
    names = ("c", "labeled", "generated")
    run = prepare_run(
        tiny_study(
            prompts={"samples": 8},
            properties={name: record for name in names},
            labels=rest,
            trajectory={"samples": 1, "training": 0},
        ),
        str(tmp_path),
    )
    generate_batch(run.url, 0)
    label_batch(run.url, 0)
    assert list(find_corrupt_chunks(run)) == []
    keys = [f"labels/{name}/c/0/0/0" for name in names]
    recorded = read_record(run.location, record_name("progress/labeled", (0,)))
    assert set(keys) <= recorded.keys()
    assert not any(key.endswith(".json") for key in read_record(run.location, CREATED))
    for key in keys:
        (Path(run.url) / key).unlink()
        damage = list(find_corrupt_chunks(run))
        assert [(chunk.key, chunk.reason) for chunk in damage] == [(key, "missing")]
        assert (damage[0].array, damage[0].chunk_index) == (key[:-8], (0, 0, 0))
        assert clear_progress(run, damage).beyond_repair == []
        assert not run.progress.is_done("labeled", 0)
        assert run.progress.is_done("generated", 0)
        label_batch(run.url, 0)
    assert list(find_corrupt_chunks(run)) == []


COPIED = [
    ("images/image/c/0/0/0/0", "images/image/c/1/0/0/0"),
    (f"activations/{LAYER}/activation/c/0/0/0/0/0", f"activations/{LAYER}/activation/c/0/1/0/0/0"),
    ("labels_clean/depth/c/0/0/0/0", "labels_trajectory/depth/c/0/0/0/0"),
    (f"probes/{LAYER}/weight/c/0/0/0/0", f"probes/{LAYER}/weight/c/0/0/2/0"),
    ("scores/depth/score/c/0/0/0/0/0/0", "scores/depth/score/c/0/0/0/1/1/0"),
]


@pytest.mark.parametrize(
    ("source", "target"), rest_slow(COPIED, (0, 4)), ids=[target for _, target in COPIED]
)
def test_find_corrupt_chunks_names_a_chunk_in_the_place_of_another(
    finished_run, copy, source, target
):
    root = Path(copy.url)
    assert (root / source).read_bytes() != (root / target).read_bytes()
    shutil.copy(root / source, root / target)
    damage = list(find_corrupt_chunks(Run(copy.url)))
    assert [(chunk.key, chunk.reason) for chunk in damage] == [(target, "changed")]
    assert clear_progress(copy, damage).beyond_repair == []
    assert_same(finished_run, carry_out(copy.study, str(root.parent)))
    assert list(find_corrupt_chunks(Run(copy.url))) == []


def test_find_corrupt_chunks_names_exchanged_prompts_and_categories(copy):
    root = Path(copy.url)
    shutil.copy(root / "samples/category/c/0", root / "samples/prompt/c/0")
    (damage,) = find_corrupt_chunks(Run(copy.url))
    assert (damage.key, damage.reason) == ("samples/prompt/c/0", "changed")
    assert clear_progress(copy, [damage]).beyond_repair == [damage]


@pytest.mark.parametrize(
    "text", rest_slow(["", "{", "[1]", '{"a": 1}', '{"a": "xyz"}', "\xff"], (0, 3))
)
def test_find_corrupt_chunks_names_a_damaged_record(finished_run, copy, text):
    name = record_name("progress/labeled", (1,))
    (Path(copy.url) / name).write_bytes(text.encode("latin-1"))
    damage = list(find_corrupt_chunks(Run(copy.url)))
    assert [chunk.key for chunk in damage] == [name]
    assert clear_progress(copy, damage).beyond_repair == []
    carry_out(copy.study, str(Path(copy.url).parent))
    assert list(find_corrupt_chunks(Run(copy.url))) == []
    original = json.loads((Path(finished_run.url) / name).read_text())
    assert json.loads((Path(copy.url) / name).read_text()) == original


def test_records_of_units_that_are_not_complete_are_not_compared(finished_run, tmp_path):
    run = prepare_run(finished_run.study, str(tmp_path))
    generate_batch(run.url, 0)
    run.progress.clear("generated", 0)
    shutil.copy(  # as a worker on another device that was interrupted within the batch
        Path(run.url) / "step_images/trajectory/c/0/0/0/0/0",
        Path(run.url) / "step_images/trajectory/c/1/0/0/0/0",
    )
    assert list(find_corrupt_chunks(run)) == []


@pytest.mark.parametrize("text", [None, "", "[1]"])
def test_a_damaged_record_of_the_creation_is_written_again(finished_run, copy, text):
    path = Path(copy.url) / CREATED
    before = path.read_bytes()
    path.unlink() if text is None else path.write_text(text)
    damage = list(find_corrupt_chunks(copy))
    reason = "missing" if text is None else "changed"
    assert [(chunk.key, chunk.reason) for chunk in damage] == [(CREATED, reason)]
    assert clear_progress(copy, damage) == ([], [])
    assert path.read_bytes() == before
    assert copy.location.has("summary.json")
    assert list(find_corrupt_chunks(copy)) == []


def test_a_record_of_the_creation_is_not_written_from_damaged_chunks(copy):
    keys = [CREATED, "samples/seed/c/0"]
    for key in keys:
        (Path(copy.url) / key).write_text("damaged")
    damage = list(find_corrupt_chunks(copy))
    assert [chunk.key for chunk in damage] == keys
    assert clear_progress(copy, damage).beyond_repair == damage
    assert (Path(copy.url) / CREATED).read_text() == "damaged"


def test_a_lost_record_of_a_complete_unit_is_damage(finished_run, copy):
    name = record_name("progress/labeled", (1,))
    (Path(copy.url) / name).unlink()
    damage = list(find_corrupt_chunks(copy))
    assert [(chunk.key, chunk.reason) for chunk in damage] == [(name, "missing")]
    assert clear_progress(copy, damage) == ([("progress", "labeled", (1,))], [])
    assert list(find_corrupt_chunks(copy)) == []  # An incomplete unit has no record yet.
    label_batch(copy.url, 1)
    assert (Path(copy.url) / name).read_bytes() == (Path(finished_run.url) / name).read_bytes()


@pytest.mark.parametrize("folder", ["checksums", "checksums/progress/labeled"])
def test_a_file_in_the_place_of_a_folder_of_records_is_damage(copy, folder):
    path = Path(copy.url) / folder
    lost = {record_name("progress/labeled", (batch,)) for batch in range(4)}
    lost |= {CREATED} if folder == "checksums" else set()
    shutil.rmtree(path)
    path.write_text("")
    damage = list(find_corrupt_chunks(copy))
    assert lost <= {chunk.key for chunk in damage}
    assert {chunk.reason for chunk in damage} == {"missing"}
    if folder == "checksums":
        with pytest.raises(UserError, match=r"a file in that of a folder \(.*Fix: move it away"):
            clear_progress(copy, damage)
        assert copy.location.has("summary.json")


def test_find_corrupt_chunks_reads_runs_without_records(copy):
    shutil.rmtree(Path(copy.url) / "checksums")
    assert list(find_corrupt_chunks(Run(copy.url))) == []
