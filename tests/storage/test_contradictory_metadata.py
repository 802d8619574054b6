"""Tests of a zarr.json of an array that contradicts its copy in the root's zarr.json."""

import json
import shutil
from pathlib import Path

import pytest

from ldmprobe_core.errors import RunError
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.metadata_cache import invalidate_cache
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks


@pytest.fixture
def copy(finished_run, tmp_path):
    """Return a copy of a finished run, which the tests damage."""
    target = tmp_path / Path(finished_run.url).name
    shutil.copytree(finished_run.url, target)
    return Run(str(target))


def _set_shape(metadata):
    metadata["shape"][-1] = 10**9


def _set_chunks(metadata):
    metadata["chunk_grid"]["configuration"]["chunk_shape"][-1] = 10**9


def _set_type(metadata):
    metadata["data_type"] = "float64" if metadata["data_type"] != "float64" else "float32"


@pytest.mark.parametrize("change", [_set_shape, _set_chunks, _set_type])
@pytest.mark.parametrize("array", ["scores/depth/score", "labels/depth", "samples/sample"])
@pytest.mark.parametrize("side", ["array", "copy"])
def test_metadata_that_contradicts_its_copy_is_neither_read_nor_repaired(copy, side, array, change):
    root = Path(copy.url)
    path = root / "zarr.json" if side == "copy" else root / array / "zarr.json"
    document = json.loads(path.read_text())
    nodes = document["consolidated_metadata"]["metadata"] if side == "copy" else {array: document}
    change(nodes[array])
    path.write_text(json.dumps(document))
    before = [(root / name).read_bytes() for name in ("zarr.json", f"{array}/zarr.json")]
    run = Run(copy.url)
    group, _, name = array.rpartition("/")
    for read in (lambda: run.open(group), lambda: run.read(group, name)):
        with pytest.raises(RunError, match=rf"{array}/zarr.json contradicts its copy.* Fix: put"):
            read()
    (damage,) = find_corrupt_chunks(run)
    assert (damage.key, damage.reason) == (f"{array}/zarr.json", "changed")
    assert [chunk.key for chunk in clear_progress(run, [damage]).beyond_repair] == [damage.key]
    assert [(root / n).read_bytes() for n in ("zarr.json", f"{array}/zarr.json")] == before


@pytest.mark.parametrize(
    ("path", "garbled"),
    [
        ("labels/depth", "labels/dgpth"),
        ("labels/depth", "labels.depth"),
        ("labels_clean", "labels_cleao"),
    ],
)
def test_a_path_that_is_damaged_in_the_list_of_arrays_is_not_created(copy, path, garbled):
    """A node that is listed nowhere has the metadata that the list gives for the missing one."""
    root = Path(copy.url)
    text = (root / "zarr.json").read_text()
    assert f'"{path}":' in text
    (root / "zarr.json").write_text(text.replace(f'"{path}":', f'"{garbled}":'))
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    invalidate_cache(copy.url)
    run = Run(copy.url)
    repair = clear_progress(run, list(find_corrupt_chunks(run)))
    assert [(chunk.key, chunk.reason) for chunk in repair.beyond_repair] == [
        ("zarr.json", "changed")
    ]
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_lost_metadata_is_restored_beside_a_group_that_is_not_listed(copy):
    root = Path(copy.url)
    before = json.loads((root / "labels_clean/zarr.json").read_text())
    (root / "labels_clean/zarr.json").unlink()
    (root / "labels/mine").mkdir()
    (root / "labels/mine/zarr.json").write_text(json.dumps(before | {"attributes": {}}))
    invalidate_cache(copy.url)
    run = Run(copy.url)
    repair = clear_progress(run, list(find_corrupt_chunks(run)))
    assert (repair.units, repair.beyond_repair) == ([], [])
    assert json.loads((root / "labels_clean/zarr.json").read_text())["node_type"] == "group"
