"""Damage to a run's data: found when read, named, and made again bit for bit."""

from __future__ import annotations

import errno
import pickle
import shutil
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import zarr
from run_helpers import assert_same, carry_out, small_study
from tiers import rest_slow
from zarr.storage import LocalStore

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.storage.progress import Progress
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.storage.stores.metadata_cache import invalidate_cache
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture
def copy(whole, tmp_path):
    """The same run elsewhere, to be damaged."""
    target = tmp_path / Path(whole.url).name
    shutil.copytree(whole.url, target)
    return Run(str(target))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


WAYS = {"flip": (flip, "changed"), "cut": (cut, "changed"), "empty": (empty, "changed"),
        "delete": (delete, "missing")}  # fmt: skip

CHUNKS = {
    "images/image/c/1/0/0/0": ("generated", (1,)),
    "step_images/trajectory/c/9/0/0/0/0": ("generated", (2,)),
    f"activations/{LAYER}/activation/c/0/2/0/0/0": ("generated", (0,)),
    f"activations/{LAYER}/nonfinite/c/0/0": ("generated", (0,)),
    f"activations_permuted/{LAYER}/activation/c/1/0/0/0/0": ("generated", (1,)),
    "labels/depth/c/2/0/0": ("labeled", (2,)),
    "labels/class_score/c/0/0": ("labeled", (0,)),
    "labels_clean/shading/c/4/0/0/0": ("labeled", (1,)),
    f"probes/{LAYER}/weight/c/0/0/1/0": ("probed", (1, 0)),
    "scores/foreground/score/c/0/0/0/2/1/0": ("probed", (2, 1)),
}


KEPT = (0, 3, 6, 9)
"""Cases of every kind of unit and of damage."""


@pytest.mark.parametrize(("key", "way"), rest_slow(zip(CHUNKS, cycle(WAYS), strict=False), KEPT))
def test_find_corrupt_chunks_names_each_kind_of_damage_and_a_resumed_run_repairs_it(
    whole, copy, key, way
):
    damage, how = WAYS[way]
    damage(Path(copy.url) / key)
    found = list(find_corrupt_chunks(copy))
    assert [(d.key, d.reason) for d in found] == [(key, how)]
    assert clear_progress(copy, found).beyond_repair == []
    name, place = CHUNKS[key]
    assert not copy.progress.is_done(name, *place)
    assert sum((~copy.progress.completed(n)).sum() for n in ("generated", "labeled", "probed")) == 1
    carry_out(copy.study, str(Path(copy.url).parent))
    assert_same(whole, copy)
    assert list(find_corrupt_chunks(copy)) == []


def test_find_corrupt_chunks_reads_chunks_of_every_array(whole, copy):
    """Not just those of the list above: any one of a run's chunks, when flipped, is found."""
    root = zarr.open_group(whole.store, mode="r", use_consolidated=False)
    paths = [path for path, member in root.members(None) if isinstance(member, zarr.Array)]
    keys = []
    for path in paths:
        chunks = sorted(p for p in (Path(copy.url) / path / "c").rglob("*") if p.is_file())
        assert chunks, path
        flip(chunks[-1])
        keys.append(str(chunks[-1].relative_to(copy.url)))
    marks = {key for key in keys if key.startswith("progress/")}
    assert {
        d.key for d in find_corrupt_chunks(copy)
    } == marks  # what should be there they would say
    for key in marks:
        shutil.copy(Path(whole.url) / key, Path(copy.url) / key)
    assert {d.key for d in find_corrupt_chunks(copy)} == set(keys) - marks


@pytest.mark.parametrize(
    "name", ["0 (1).json", "notes.json", "00.json", "-1.json", "999.json", "0-0.json", "._0.json"]
)
def test_find_corrupt_chunks_ignores_files_beside_the_records_of_units(copy, name):
    folder = Path(copy.url) / "checksums/progress/generated"
    (folder / name).write_text('{"images/image/c/0/0/0/0": "00000000"}')
    assert list(find_corrupt_chunks(copy)) == []


def test_clear_progress_takes_back_a_damaged_mark(whole, copy):
    flip(Path(copy.url) / "progress/probed/c/1/0")
    found = list(find_corrupt_chunks(copy))
    assert clear_progress(copy, found).beyond_repair == []
    assert not copy.progress.is_done("probed", 1, 0)
    carry_out(copy.study, str(Path(copy.url).parent))
    assert_same(whole, copy)


@pytest.mark.parametrize(
    ("lost", "marks"),
    [
        ("progress/probed/c/1/0", [("probed", (1, 0))]),
        ("progress/labeled/c/2", [("labeled", (2,))]),
        ("progress/generated/c", [("generated", (batch,)) for batch in range(3)]),
    ],
)
def test_marks_lost_from_a_finished_run_are_missing_and_their_units_repeated(
    whole, copy, lost, marks
):
    path = Path(copy.url) / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    keys = [f"progress/{kind}/c/{'/'.join(map(str, index))}" for kind, index in marks]
    found = list(find_corrupt_chunks(copy))
    assert [(d.key, d.reason) for d in found] == [(key, "missing") for key in keys]
    repair = clear_progress(copy, found)
    assert repair.beyond_repair == []
    assert repair.units == [("progress", *mark) for mark in marks]
    assert not copy.location.has("summary.json")
    assert list(find_corrupt_chunks(copy)) == []  # a run without summary may lack marks
    assert_same(whole, carry_out(copy.study, str(Path(copy.url).parent)))


@pytest.mark.parametrize("name", ["layer", "step", "batch", "timestep"])
def test_lost_coordinates_of_the_progress_record_are_missing(copy, name):
    (Path(copy.url) / f"progress/{name}/c/0").unlink()
    invalidate_cache(copy.url)
    found = list(find_corrupt_chunks(Run(copy.url)))
    assert [(d.key, d.reason) for d in found] == [(f"progress/{name}/c/0", "missing")]
    assert clear_progress(copy, found).beyond_repair == found


@pytest.mark.parametrize("key", ["samples/prompt/c/0", "progress/layer/c/0", "progress/step/c/0"])
def test_clear_progress_returns_damage_that_no_unit_can_repair(copy, key):
    flip(Path(copy.url) / key)
    invalidate_cache(copy.url)
    (left,) = clear_progress(copy, list(find_corrupt_chunks(copy))).beyond_repair
    assert left.key == key


def test_clear_progress_removes_the_summary_before_it_marks_a_unit(copy, monkeypatch):
    """A process that is stopped in between leaves a run that counts as unfinished."""
    copy.location.write_text("summary.json", "{}")
    flip(Path(copy.url) / "labels/depth/c/0/0/0")
    damage = list(find_corrupt_chunks(copy))

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "set_count", stop)
    with pytest.raises(KeyboardInterrupt):
        clear_progress(copy, damage)
    assert copy.progress.is_done("labeled", 0)
    assert not copy.location.has("summary.json")


@pytest.mark.parametrize(("key", "left"), [("samples/prompt/c/0", 1), ("labels/zarr.json", 0)])
def test_clear_progress_keeps_the_summary_if_it_marks_no_unit(copy, key, left):
    copy.location.write_text("summary.json", "{}")
    (Path(copy.url) / key).unlink()
    invalidate_cache(copy.url)
    assert len(clear_progress(copy, list(find_corrupt_chunks(copy))).beyond_repair) == left
    assert copy.location.has("summary.json")
    assert (Path(copy.url) / key).exists() is not bool(left)


def test_corrupt_chunk_stops_probe_cell(whole, copy):
    copy.progress.clear("probed", 1, 0)
    flip(Path(copy.url) / f"activations/{LAYER}/activation/c/1/1/0/0/0")
    with pytest.raises(CorruptChunkError, match=r"activation/c/1/1/0/0/0 is changed.*--redo"):
        probe_cell(copy.url, 2, LAYER)
    assert not copy.progress.is_done("probed", 1, 0)
    (Path(copy.url) / f"activations/{LAYER}/activation/c/1/1/0/0/0").unlink()
    with pytest.raises(CorruptChunkError, match="is missing"):
        probe_cell(copy.url, 2, LAYER)


def test_corrupt_chunk_error_survives_pickling():
    error = CorruptChunkError("runs/a", "images/image/c/3/0/0/0", "changed")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301, our own bytes
    assert (str(again), again.array, again.chunk_index) == (
        str(error),
        "images/image",
        (3, 0, 0, 0),
    )


def test_find_corrupt_chunks_ignores_units_that_are_not_done(tiny_model, tmp_path):
    run = prepare_run(small_study("begun", tiny_model, 10), str(tmp_path))
    generate_batch(run.url, 1)
    assert list(find_corrupt_chunks(run)) == []


def test_full_disk_is_a_user_error_and_marks_nothing(whole, tiny_model, tmp_path, monkeypatch):
    """The disk has room for some chunks of a batch; the same call goes on when there is room."""
    run = prepare_run(small_study("whole", tiny_model, 10), str(tmp_path))
    room = 5
    write = LocalStore.set

    async def until_full(self, key, value):
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device", key)
        await write(self, key, value)

    monkeypatch.setattr(LocalStore, "set", until_full)
    with pytest.raises(UserError, match="no space is left"):
        generate_batch(run.url, 0)
    monkeypatch.undo()
    assert not run.progress.completed("generated").any()
    assert_same(whole, carry_out(run.study, str(tmp_path)))


def test_chunk_checksums_are_crc_32c(whole):
    """Against a table-driven CRC written out here, on a chunk that is stored plainly."""
    table = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ 0x82F63B78 * (i & 1)
        table.append(i)
    data = (Path(whole.url) / "progress/generated/c/0").read_bytes()
    value = np.uint32(0xFFFFFFFF)
    for byte in data[:-4]:
        value = np.uint32(table[(int(value) ^ byte) & 0xFF] ^ (int(value) >> 8))
    assert data[:-4] == b"\x01"
    assert int(value) ^ 0xFFFFFFFF == int.from_bytes(data[-4:], "little")
