"""Tests that a command on a damaged run names the damaged file and tells the user what to do."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from intervention_helpers import carry_out_intervention

from flows import cli
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.storage import verify
from ldmprobe_core.storage.lease import hold_lease
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.storage.stores.metadata_cache import invalidate_cache

HARMS = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256))),
    "list": lambda path: path.write_text("[1, 2]"),
}

COMMANDS = {
    "show": ["summary.json"],
    "compare": ["summary.json", "zarr.json", "scores/depth/score/zarr.json"],
    "verify": ["study.json", "zarr.json", "progress/probed/zarr.json", "labels/zarr.json"],
    "report": ["study.json", "zarr.json", "samples/zarr.json", "labels/depth/zarr.json"],
    "intervene": ["study.json", "zarr.json", "labels/foreground/zarr.json"],
}


@pytest.fixture
def copy(finished_run, tmp_path):
    """Return a copy of a finished run, which the tests damage."""
    target = tmp_path / Path(finished_run.url).name
    shutil.copytree(finished_run.url, target)
    return target


@pytest.fixture
def edited_copy(copy):
    """Return such a copy with an intervention, and the name of the intervention."""
    spec = Intervention(samples=1, steps=1, layers=("mid_block*",), controls=())
    carry_out_intervention(Run(str(copy)), spec)
    return copy, spec.name


@pytest.mark.parametrize("command", COMMANDS)
def test_command_on_a_damaged_file_is_one_sentence(copy, command, capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # for log files
    # No command should get as far as connecting to a server, so this address has none.
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9")
    words = {"compare": [str(copy), str(copy)], "intervene": [str(copy), "--samples", "2"]}
    words = words.get(command, [str(copy)])
    for name in COMMANDS[command]:
        path, content = copy / name, (copy / name).read_bytes()
        for harm, damage in HARMS.items():
            damage(path)
            # Each command sees the files as a new process would.
            invalidate_cache(str(copy))
            monkeypatch.setattr(sys, "argv", ["ldmprobe", command, *words])
            with pytest.raises(SystemExit) as stop:
                cli.main()
            captured = capfd.readouterr()
            case = (command, name, harm, captured.out[-300:], captured.err)
            sentence = captured.err if stop.value.code else captured.out
            if command == "verify" and "redo" in captured.err:  # a line for each damaged file
                sentence = captured.out + captured.err
            assert stop.value.code, case
            assert "unexpected" not in captured.err, case
            assert "Traceback" not in captured.err, case
            assert name.rpartition("/")[2] in sentence, case
            assert len(captured.err.strip().splitlines()) == 1, case
            path.write_bytes(content)


@pytest.mark.parametrize("command", ["verify", "watch", "run"])
@pytest.mark.parametrize("harm", sorted(HARMS.keys() - {"missing"}))
def test_command_names_a_damaged_summary(copy, command, harm, capfd, monkeypatch, tmp_path):
    HARMS[harm](copy / "summary.json")
    (tmp_path / "study.yaml").write_text((copy / "study.json").read_text())
    words = ["run", f"{tmp_path}/study.yaml", "--store", str(tmp_path)]
    words = words if command == "run" else [command, str(copy)]
    monkeypatch.setattr(sys, "argv", ["ldmprobe", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capfd.readouterr()
    assert stop.value.code == 3
    assert f"{copy}: summary.json is unreadable (" in captured.err
    assert f"Fix: `ldmprobe report {copy}` writes it again" in captured.err
    assert "finished" not in captured.out


@pytest.mark.parametrize("command", ["verify", "report"])
def test_command_names_a_log_snr_of_another_number_of_steps(copy, command, capfd, monkeypatch):
    root = json.loads((copy / "zarr.json").read_text())
    assert len(root["attributes"]["log_snr"]) == 3
    root["attributes"]["log_snr"] = [5.0, 1.0]
    (copy / "zarr.json").write_text(json.dumps(root))
    monkeypatch.setattr(sys, "argv", ["ldmprobe", command, str(copy)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3
    error = capfd.readouterr().err
    assert "zarr.json: the attribute log_snr is damaged (2 values, not one for each of the" in error
    assert "the 3 steps). Fix: " in error
    # A run of a former release has none.
    del root["attributes"]["log_snr"]
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0


@pytest.mark.parametrize("place", ["run", "control"])
def test_verify_and_show_name_a_summary_without_numbers_of_samples(copy, place, capfd, monkeypatch):
    summary = json.loads((copy / "summary.json").read_text())
    if place == "run":
        summary["samples"] = {"total": 12}
    else:
        summary["properties"]["depth"]["controls"]["position"]["samples"] = {}
    (copy / "summary.json").write_text(json.dumps(summary))
    for command in ("verify", "show"):
        monkeypatch.setattr(sys, "argv", ["ldmprobe", command, str(copy)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 3
        error = capfd.readouterr().err
        assert "summary.json" in error
        assert "Fix: `ldmprobe report" in error


@pytest.mark.parametrize("command", ["verify", "show", "compare", "watch", "list"])
def test_a_summary_of_another_run_is_not_shown_as_this_ones(copy, command, capfd, monkeypatch):
    summary = json.loads((copy / "summary.json").read_text())
    summary["study_hash"] = "0123456789abcdef"
    (copy / "summary.json").write_text(json.dumps(summary))
    words = {"compare": [str(copy), str(copy)], "list": [str(copy.parent)]}
    monkeypatch.setattr(sys, "argv", ["ldmprobe", command, *words.get(command, [str(copy)])])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capfd.readouterr()
    if command == "list":
        assert "unreadable" in captured.out
        assert "another run" in " ".join(captured.out.split())
        return
    assert stop.value.code == 3
    assert f"{copy}/summary.json is of another run. Fix: " in captured.err
    assert f"Fix: `ldmprobe report {copy}` writes it again" in captured.err


def test_verify_names_a_damaged_summary_of_an_intervention(copy, capfd, monkeypatch):
    (copy / "edits/depth-1").mkdir(parents=True)
    (copy / "edits/depth-1/summary.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["ldmprobe", "verify", str(copy)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3
    assert "edits/depth-1/summary.json is unreadable (" in capfd.readouterr().err


def test_verify_names_lost_settings_of_an_intervention_and_redo_restores_them(
    edited_copy, capfd, monkeypatch
):
    copy, name = edited_copy
    settings = copy / f"edits/{name}/intervention.json"
    before = settings.read_text()
    settings.unlink()
    image = copy / f"interventions/{name}/image/c/0/0/0/0/0/0/0/0"
    for damaged in (False, True):
        settings.unlink(missing_ok=True)
        if damaged:  # its repair removes the summary, which holds the settings
            image.unlink()
        else:
            monkeypatch.setattr(sys, "argv", ["ldmprobe", "verify", str(copy)])
            with pytest.raises(SystemExit) as stop:
                cli.main()
            assert stop.value.code == 3
            assert f"edits/{name}/intervention.json is missing. Fix: " in capfd.readouterr().err
        said = redo(copy, capfd, monkeypatch)
        assert f"edits/{name}/intervention.json is restored from the summary beside it" in said
        assert settings.read_text() == before


def test_verify_redo_leaves_a_run_alone_on_which_a_flow_works(copy, capfd, monkeypatch):
    """The flow would write its summary after a unit was marked as not complete."""
    (copy / "labels/depth/c/0/0/0").unlink()
    words = ["ldmprobe", "verify", str(copy), "--redo"]

    def verify() -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, "".join(capfd.readouterr())

    with hold_lease(str(copy), "flow run 1"):
        code, said = verify()
    assert code == 1
    assert "is being worked on by flow run 1" in said
    assert (copy / "summary.json").exists()
    assert Run(str(copy)).progress.is_done("labeled", 0)
    code, said = verify()
    assert code == 0, said
    assert "labels/depth/c/0/0/0: missing" in said
    assert not (copy / "summary.json").exists()
    assert not Run(str(copy)).progress.is_done("labeled", 0)
    assert not Path(f"{copy}.lease").exists()


@pytest.mark.slow
def test_report_and_show_of_a_damaged_summary(copy, capfd, monkeypatch):
    before = json.loads((copy / "summary.json").read_text())["properties"]
    for harm in ("cut", "noise", "list"):
        HARMS[harm](copy / "summary.json")
        monkeypatch.setattr(sys, "argv", ["ldmprobe", "report", str(copy)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, capfd.readouterr().err
        assert json.loads((copy / "summary.json").read_text())["properties"] == before


def redo(run, capfd, monkeypatch) -> str:
    """Output of ``verify --redo`` below the list of damaged files."""
    invalidate_cache(str(run))
    monkeypatch.setattr(sys, "argv", ["ldmprobe", "verify", str(run), "--redo"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    return capfd.readouterr().out


def test_verify_redo_says_what_follows_for_a_run_that_is_not_finished(copy, capfd, monkeypatch):
    (copy / "summary.json").unlink()
    (copy / "labels/zarr.json").unlink()
    said = redo(copy, capfd, monkeypatch)
    assert said.splitlines()[1:] == ["the damaged metadata is restored; every chunk is whole"]
    (copy / "labels/depth/c/0/0/0").unlink()
    said = redo(copy, capfd, monkeypatch)
    repeated = "1 unit of work with damaged chunks will be repeated by the next run"
    assert said.splitlines()[1:] == [repeated]


def test_verify_redo_names_the_command_that_repeats_damaged_edits(copy, capfd, monkeypatch):
    (copy / "labels/depth/c/0/0/0").unlink()
    repair = verify.Repair([("interventions/a", "done", (0, 0, 0, 0))], [])
    monkeypatch.setattr(verify, "clear_progress", lambda run, damage: repair)
    (sentence,) = redo(copy, capfd, monkeypatch).splitlines()[1:]
    assert sentence == (
        "the damaged edits of a will be repeated by `ldmprobe intervene` with the same options, "
        "which are in edits/a/intervention.json"
    )


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            ["interventions/b/target_map/c/0/0/0/0"],
            "only the creation of the intervention writes it. Fix: note the options in "
            "edits/b/intervention.json, remove interventions/b and edits/b, and repeat",
        ),
        (
            ["interventions/b/target_map/c/0/0/0/0", "samples/seed/c/0"],
            "samples/seed/c/0 is damaged, and cannot be computed from the rest of the run",
        ),
    ],
)
def test_verify_redo_says_what_it_repaired_beside_damage_beyond_repair(
    copy, capfd, monkeypatch, keys, words
):
    (copy / "labels/depth/c/0/0/0").unlink()
    left = [CorruptChunkError(str(copy), key, "missing") for key in keys]
    repair = verify.Repair([("progress", "labeled", (0,))], left)
    monkeypatch.setattr(verify, "clear_progress", lambda run, damage: repair)
    monkeypatch.setattr(sys, "argv", ["ldmprobe", "verify", str(copy), "--redo"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capfd.readouterr()
    assert stop.value.code == 3
    assert "1 unit of work with damaged chunks will be repeated by the next run" in captured.out
    assert words in captured.err
