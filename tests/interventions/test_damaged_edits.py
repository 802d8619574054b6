"""Damage to an intervention's arrays and records: found, and repaired by its units of work."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from intervention_helpers import carry_out_intervention

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.interventions.results import (
    completed_interventions,
    read_intervention,
    restore_intervention,
    started_interventions,
)
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.stages import create_intervention, edit_batch
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.metadata_cache import invalidate_cache
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks

SPEC = Intervention(samples=2, steps=1, layers=("mid_block*",), controls=(), seed=41)
GROUP = f"interventions/{SPEC.name}"


@pytest.fixture(scope="module")
def edited(unedited_run, tmp_path_factory):
    """A finished run with one finished intervention; tests only read it."""
    folder = tmp_path_factory.mktemp("edited") / Path(unedited_run.url).name
    run = Run(str(shutil.copytree(unedited_run.url, folder)))
    carry_out_intervention(run, SPEC)
    return run


@pytest.fixture
def copy(edited, tmp_path):
    """The same run elsewhere, to be damaged."""
    return Run(str(shutil.copytree(edited.url, tmp_path / Path(edited.url).name)))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def damage_of(run: Run) -> list[tuple[str, str]]:
    invalidate_cache(run.url)
    return [(chunk.key, chunk.reason) for chunk in find_corrupt_chunks(Run(run.url))]


@pytest.mark.parametrize(
    ("array", "way", "reason"),
    [
        ("image/c/0/0/0/0/0/0/0/0", flip, "changed"),
        ("score/c/0/0/0/0/0/0", Path.unlink, "missing"),
        ("done/c/0/0/0/0", flip, "changed"),
        ("done/c/0/0/0/0", Path.unlink, "missing"),
    ],
)
def test_a_damaged_chunk_of_an_edit_is_repaired_by_the_intervention(
    edited, copy, array, way, reason
):
    key = f"{GROUP}/{array}"
    way(Path(copy.url) / key)
    assert damage_of(copy) == [(key, reason)]
    repair = clear_progress(copy, list(find_corrupt_chunks(copy)))
    assert (repair.of_run, repair.interventions, repair.beyond_repair) == (0, [SPEC.name], [])
    assert copy.location.has("summary.json")
    assert completed_interventions(copy) == []
    carry_out_intervention(copy, SPEC)
    np.testing.assert_array_equal(copy.read(GROUP, "image"), edited.read(GROUP, "image"))
    assert damage_of(copy) == []


@pytest.mark.parametrize("array", ["target_map/c/0/0/0/0", "sample/c/0", "unedited/c/0/0/0"])
def test_damage_that_no_edit_repairs_keeps_the_intervention_and_lets_the_rest_be_repaired(
    copy, array
):
    keys = [f"{GROUP}/{array}", f"{GROUP}/image/c/0/0/0/0/0/0/0/0", "labels/depth/c/0/0/0"]
    for key in keys:
        flip(Path(copy.url) / key)
    repair = clear_progress(copy, list(find_corrupt_chunks(copy)))
    assert [chunk.key for chunk in repair.beyond_repair] == keys[:1]
    assert repair.units == [("progress", "labeled", (0,))]
    assert completed_interventions(copy) == [SPEC.name]


@pytest.mark.parametrize("records", [["intervention.json"], ["intervention.json", "summary.json"]])
def test_a_lost_intervention_is_not_whole_after_its_metadata_is_restored(copy, records):
    """Its name alone stays known, and it is made again after its records are removed too."""
    shutil.rmtree(Path(copy.url) / GROUP)
    for name in {"intervention.json", "summary.json"} - set(records):
        copy.location.remove(f"edits/{SPEC.name}/{name}")
    for _ in range(2):
        invalidate_cache(copy.url)
        repair = clear_progress(copy, list(find_corrupt_chunks(copy)))
        lost = {chunk.key for chunk in repair.beyond_repair}
        assert {f"{GROUP}/{name}" for name in ("target/c/0", "target_map/c/0/0/0/0")} <= lost
        assert not any(key.startswith(f"{GROUP}/image") for key in lost)
        assert repair.units == []
    shutil.rmtree(Path(copy.url) / GROUP)
    shutil.rmtree(Path(copy.url) / "edits" / SPEC.name)
    invalidate_cache(copy.url)
    carry_out_intervention(Run(copy.url), SPEC)
    assert damage_of(copy) == []


def test_an_intervention_that_is_not_finished_may_lack_marks(unedited_run, tmp_path):
    folder = tmp_path / Path(unedited_run.url).name
    run = Run(str(shutil.copytree(unedited_run.url, folder)))
    name = create_intervention(run, Intervention(samples=1, windows=2, controls=(), seed=42))
    assert damage_of(run) == []
    edit_batch(run.url, name, 0, 0, 0, 0)
    assert damage_of(run) == []


SETTINGS = f"edits/{SPEC.name}/intervention.json"
HARMS = {
    "missing": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "list": lambda path: path.write_text("[]"),
    "another": lambda path: path.write_text(SPEC.model_copy(update={"seed": 1}).model_dump_json()),
}


@pytest.mark.parametrize("harm", HARMS)
def test_damaged_settings_are_restored_from_the_summary(edited, copy, harm):
    HARMS[harm](Path(copy.url) / SETTINGS)
    with pytest.raises(RunError, match=rf"{SETTINGS} .*Fix: put back .*, or run `.* --redo`, wh"):
        read_intervention(copy, SPEC.name)
    assert restore_intervention(copy, SPEC.name)
    assert copy.location.read_text(SETTINGS) == edited.location.read_text(SETTINGS)
    assert not restore_intervention(copy, SPEC.name)


@pytest.mark.parametrize("harm", HARMS)
def test_damaged_settings_without_a_summary_are_named(copy, harm):
    copy.location.remove(f"edits/{SPEC.name}/summary.json")
    HARMS[harm](Path(copy.url) / SETTINGS)
    assert started_interventions(copy) == [SPEC.name]
    assert not restore_intervention(copy, SPEC.name)
    with pytest.raises(
        RunError, match=rf"{SETTINGS} .*or remove edits/{SPEC.name} and {GROUP}, and repeat"
    ):
        read_intervention(copy, SPEC.name)


def test_settings_of_an_unknown_intervention_are_not_missing(copy):
    (Path(copy.url) / "interventions/begun").mkdir()
    assert started_interventions(copy) == [SPEC.name]
    with pytest.raises(UserError, match=r"holds no edits/begun/intervention\.json"):
        read_intervention(copy, "begun")
