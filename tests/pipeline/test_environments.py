"""Records of the versions and devices that took part in a run."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from ldmprobe_core.analysis.compare import difference_notes
from ldmprobe_core.analysis.run_analysis import current_fields
from ldmprobe_core.models import devices
from ldmprobe_core.pipeline import environments
from ldmprobe_core.pipeline.environments import change_notes, environment_notes
from ldmprobe_core.pipeline.units import carry_out_unit
from ldmprobe_core.storage.run import Run


@pytest.fixture
def copy(finished_run, tmp_path):
    """The finished run elsewhere, with records that the tests change."""
    return Run(str(shutil.copytree(finished_run.url, tmp_path / Path(finished_run.url).name)))


def records(run: Run) -> dict[Path, dict]:
    return {path: json.loads(path.read_text()) for path in Path(run.url, "environments").iterdir()}


def test_each_kind_of_unit_has_one_record_of_its_versions_and_device(finished_run):
    found = list(records(finished_run).values())
    assert sorted(record["unit"] for record in found) == ["generate", "label", "probe"]
    assert {record["device"] for record in found} == {"cpu"}
    assert all(record["versions"]["torch"] == version("torch") for record in found)
    assert environment_notes(finished_run) == change_notes(finished_run) == ()
    assert "several versions" not in str(current_fields(finished_run, {})["notes"])


def test_a_unit_with_another_version_is_recorded_and_named(copy, monkeypatch):
    made = environments.versions()
    monkeypatch.setattr(
        environments, "versions", lambda: {**made, "torch": "99.1+cu1", "xarray": "0"}
    )
    torch = version("torch").partition("+")[0]
    (note,) = change_notes(copy)
    assert f"continues with torch 99.1+cu1 instead of {torch}, which may change results" in note
    carry_out_unit("label", copy.url, 0)
    assert len(records(copy)) == 3  # the unit was complete, so nothing was computed
    copy.progress.clear("labeled", 0)
    for _ in range(2):
        carry_out_unit("label", copy.url, 0)
    assert len(records(copy)) == 4
    assert change_notes(copy) == ()  # it has taken part already
    (note,) = environment_notes(copy)
    assert note.endswith(f"which may change results: torch ({torch}, 99.1)")
    assert current_fields(copy, {})["notes"][-1] == note
    assert difference_notes([copy, copy]) == (f"{copy.url}: {note}",) * 2


def test_devices_are_compared_within_a_kind_of_unit_and_damaged_records_left_out(copy):
    one, two, three = sorted(records(copy))
    for path in (one, two):
        path.write_text(path.read_text().replace('"cpu"', '"cuda"'))
    three.write_text("{")
    assert environment_notes(copy) == ()  # probes on a CPU, images on a GPU, as in some clusters
    other = json.loads(one.read_text()) | {"device": "cpu"}
    one.with_name("generate-0.json").write_text(json.dumps(other))
    (note,) = environment_notes(copy)
    assert note.endswith("which may change results: device of generate (cpu, cuda)")


def test_a_process_records_each_device_and_each_run_at_an_address(copy, monkeypatch):
    """A Dask worker lives on while its run is resumed with another device, or created again."""
    shutil.rmtree(f"{copy.url}/environments")
    for device in ("cpu", "mps", "mps"):
        monkeypatch.setattr(devices, "pick_device", lambda name, one=device: torch.device(one))
        environments.record_environment(Run(copy.url), "probe")
    assert sorted(record["device"] for record in records(copy).values()) == ["cpu", "mps"]
    shutil.rmtree(f"{copy.url}/environments")
    copy.location.write_text("identity", "another run")
    environments.record_environment(Run(copy.url), "probe")
    assert [record["device"] for record in records(copy).values()] == ["mps"]


def test_a_run_of_an_early_version_has_no_records(copy):
    shutil.rmtree(f"{copy.url}/environments")
    assert environment_notes(copy) == change_notes(copy) == ()
