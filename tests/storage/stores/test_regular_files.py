"""Tests that something else than a regular file in a run is named, and never waited for."""

import os
import shutil
from pathlib import Path

import pytest
from run_helpers import assert_same, carry_out
from tiers import rest_slow

from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.errors import LdmprobeError, RunError
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.storage.stores.regular_files import NotRegularError
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks

CHUNK = "scores/depth/score/c/0/0/0/0/0/0"
ARRAY = "scores/depth/score/zarr.json"

KINDS = {
    "folder": os.mkdir,
    "pipe": os.mkfifo,
    "circular link": lambda path: os.symlink(path, path),
    "device": lambda path: os.symlink("/dev/zero", path),
}


@pytest.fixture
def copy(whole, tmp_path):
    target = tmp_path / "runs" / Path(whole.url).name
    shutil.copytree(whole.url, target)
    return target


def _replace(path, make):
    path.unlink()
    make(path)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", rest_slow(KINDS, (0, 1)))
def test_verify_names_what_is_no_regular_file_and_redo_repairs_it(whole, copy, kind):
    for name in (CHUNK, ARRAY):
        _replace(copy / name, KINDS[kind])
    found = [(chunk.key, chunk.reason) for chunk in find_corrupt_chunks(Run(str(copy)))]
    assert (ARRAY, "not a regular file") in found
    with pytest.raises(CorruptChunkError, match=r"score/zarr\.json is not a regular file\. Fix: "):
        Run(str(copy)).open("scores/depth")
    run = Run(str(copy))
    assert not clear_progress(run, find_corrupt_chunks(run)).beyond_repair
    assert_same(carry_out(run.study, str(copy.parent)), whole)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_read_of_a_chunk_that_is_no_regular_file(copy, kind):
    _replace(copy / CHUNK, KINDS[kind])
    with pytest.raises(CorruptChunkError) as caught:
        Run(str(copy)).read("scores/depth", "score")
    assert (caught.value.key, caught.value.reason) == (CHUNK, "not a regular file")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["zarr.json", "study.json", "summary.json"])
def test_reading_a_json_file_that_is_no_regular_file_is_one_sentence(copy, kind, name):
    (copy / name).unlink(missing_ok=True)
    KINDS[kind](copy / name)
    readers = {
        "zarr.json": lambda: list(find_corrupt_chunks(Run(str(copy)))),
        "study.json": lambda: Run(str(copy)).study,
        "summary.json": lambda: load_summary(Run(str(copy))),
    }
    with pytest.raises(NotRegularError, match=rf"{name}: it is .*, not a regular file. Fix: "):
        readers[name]()


def test_clear_progress_keeps_a_folder_that_holds_files(copy):
    _replace(copy / CHUNK, os.mkdir)
    (copy / CHUNK / "notes.txt").write_text("of the user")
    run = Run(str(copy))
    (chunk,) = clear_progress(run, find_corrupt_chunks(run)).beyond_repair
    assert chunk.key == CHUNK
    assert (copy / CHUNK / "notes.txt").exists()


def test_reading_a_file_without_permission_is_one_sentence(copy, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "zarr.json")
    with pytest.raises(RunError, match=r"zarr\.json: its permissions do not allow reading it\."):
        list(find_corrupt_chunks(Run(str(copy))))
    with pytest.raises(RunError, match=r"zarr\.json: its permissions do not allow reading it\."):
        Run(str(copy)).open("scores/depth")


@pytest.mark.parametrize("name", ["folder", "file/below/deep"])
def test_writing_in_the_place_of_a_folder_is_one_sentence(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(LdmprobeError, match=r"in the place of a file.* Fix: move it away"):
        Location(str(tmp_path)).write_text(name, "x")
