"""Tests that a user's mistake gives a one-line message and exit code 1 before any work starts."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli
from flows.commands import planning, tables
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline import environments
from ldmprobe_core.study.prompt_sets import tabletop_prompts

ROOT = Path(__file__).parents[2]


@pytest.fixture
def complain(capfd, monkeypatch):
    """Return a function that runs the command and returns its standard error.

    No Prefect server starts meanwhile.
    """
    monkeypatch.setattr(planning, "server_in_advance", nullcontext)

    def call(*words):
        monkeypatch.setattr("sys.argv", ["ldmprobe", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capfd.readouterr()
        return stop.value.code, " ".join(captured.err.split()), captured.out

    return call


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampling.stepz=3"], ["sampling.stepz is not a key"]),
        (["sampling.steps=0"], ["sampling.steps is 0"]),
        (["sampling.steps=many"], ["sampling.steps is 'many'"]),
        (["prompts.items=[]"], ["items is empty"]),
        (["capture.layers=['nothing.*']"], ["capture.layers: 'nothing.*' matches no module"]),
        (
            ["labels.depth=midas9"],
            [
                "labels.depth is 'midas9'",
                "there is no such labeler. Fix: use one of",
            ],
        ),
        (
            ["model.source=/no/such/folder"],
            ["model.source '/no/such/folder': there is no such folder"],
        ),
        (["model.source=../models"], ["model.source '../models': there is no such folder"]),
        (["execution.device=cuda"], ["execution.device is 'cuda'", "auto"]),
    ],
)
def test_run_reports_a_mistake_before_anything_begins(complain, tmp_path, overrides, words):
    options = [part for override in overrides for part in ("--set", override)]
    code, said, out = complain("run", "tabletop", "--store", str(tmp_path / "runs"), *options)
    assert code == 1
    assert said.startswith("ldmprobe: ")
    assert "Traceback" not in said
    for word in words:
        assert word in said
    assert "Prefect" not in out
    assert not (tmp_path / "runs").exists()


def test_run_refuses_more_prompts_than_flow_parameters_hold(complain, tmp_path):
    path = tmp_path / "study.yaml"
    items = [f"{caption} {'x' * 19_000}" for caption, _ in tabletop_prompts(60, 0)]
    path.write_text(json.dumps({"prompts": {"items": items}}))
    code, said, _ = complain("run", str(path), "--store", str(tmp_path / "runs"))
    assert code == 1
    assert "prompts.items makes the study 11" in said
    assert "prompts.files" in said


@pytest.mark.parametrize("store", ["", " ", "a\0b", "s3://b/\n", "ftp://a/b"])
def test_run_refuses_a_store_that_is_no_path_or_url(complain, store):
    code, said, _ = complain("run", "tabletop", "--store", store)
    assert code == 1
    assert said.startswith("ldmprobe: store ")


@pytest.mark.parametrize("command", ["run", "classify"])
def test_command_refuses_a_malformed_store_before_it_plans_the_study(complain, command):
    code, said, _ = complain(command, "no such study", "--store", "s3://runs//x")
    assert (code, said[:31]) == (1, "ldmprobe: store 's3://runs//x':")


def test_classify_notes_other_versions_only_for_a_run_that_is_not_finished(
    complain, finished_run, tmp_path, monkeypatch
):
    made = environments.versions()
    monkeypatch.setattr(environments, "versions", lambda: {**made, "torch": "99.1"})

    def nothing(*arguments, **options):
        raise UserError("stopped here")

    monkeypatch.setattr(cli, "carry_out", nothing)
    folder = tmp_path / Path(finished_run.url).name
    shutil.copytree(finished_run.url, folder)
    path = tmp_path / "study.yaml"
    path.write_text(finished_run.study.to_json())  # JSON is YAML
    classify = ("classify", str(path), "--store", str(tmp_path))
    assert complain(*classify) == (1, "ldmprobe: stopped here", "")
    (folder / "summary.json").unlink()
    assert "continues with torch 99.1" in complain(*classify)[2]


def test_run_and_show_refuse_what_does_not_exist(complain, tmp_path):
    code, said, _ = complain("run", str(tmp_path / "none.yaml"))
    assert code == 1
    assert "no such file" in said
    code, said, _ = complain("show", str(tmp_path))
    assert code == 1
    assert "no summary.json" in said
    file = tmp_path / "a file"
    file.write_text("")
    for path in (file, file / "summary.json", tmp_path / "none"):
        code, said, _ = complain("show", str(path))
        assert (code, "no summary.json" in said) == (1, True)


def test_show_expands_the_home_folder(complain, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, said, _ = complain("show", "~/runs/x")
    assert code == 1
    assert str(tmp_path / "runs/x") in said


def test_run_refuses_a_bad_port_and_a_server_that_does_not_start(complain, tmp_path, monkeypatch):
    monkeypatch.setenv("LDMPROBE_PREFECT_PORT", "many")
    run = ("run", "tabletop", "--store", str(tmp_path / "runs"))
    code, said, _ = complain(*run)
    assert (code, "LDMPROBE_PREFECT_PORT is 'many'" in said) == (1, True)
    monkeypatch.setenv("LDMPROBE_PREFECT_PORT", "9")
    # The command would start a Prefect server with this program, which would fail.
    monkeypatch.setattr("sys.executable", "/bin/false")
    code, said, _ = complain(*run)
    assert (code, "Prefect server did not start; its log is" in said) == (3, True)
    assert not (tmp_path / "runs").exists()


def test_run_and_show_refuse_an_object_store_that_does_not_answer(complain, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens here
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for words in (("show", "s3://bucket/run"), ("run", "tabletop", "--store", "s3://bucket/runs")):
        code, said, out = complain(*words)
        assert code == 1
        assert "s3://bucket/run" in said
        assert "cannot be reached" in said
        assert "Prefect" not in out


def test_run_refuses_a_store_that_is_not_writable(complain, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    code, said, out = complain("run", "tabletop", "--store", str(file / "runs"))
    assert code == 1
    assert f"a file in that of a folder ({file})" in said
    assert "Prefect" not in out


def test_run_refuses_a_disk_that_is_too_small(complain, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    code, said, _ = complain("run", "tabletop", "--store", str(tmp_path / "runs"))
    assert code == 1
    assert "1.0 MB free" in said
    assert "prompts.samples" in said


def test_check_prints_sizes():
    result = CliRunner().invoke(cli.app, ["check", "tabletop"])
    assert result.exit_code == 0
    assert "240 samples" in result.output
    assert "15 steps, 7 layers, 105 cells" in result.output
    # Each step has 76,800 values, in three layers of 16 x 16 x 64, three of 8 x 8 x 128 and one of
    # 4 x 4 x 192.
    values = 3 * 16 * 16 * 64 + 3 * 8 * 8 * 128 + 4 * 4 * 192
    assert f"activations: {240 * 15 * values * 2 / 1e6:.1f} MB" in result.output
    assert f"inputs: {240 * 15 * 16 * 16 * (4 + 3) * 2 / 1e6:.1f} MB" in result.output


@pytest.mark.parametrize(
    ("control", "end"),
    [
        ("permuted_weights={samples: 4}", ", 16 with a denoiser of permuted weights"),
        ("permuted_weights=false", ""),
    ],
)
def test_check_names_the_weights_of_the_control_and_counts_one_as_one(control, end):
    settings = ("prompts.samples=16", "sampling.steps=1", "capture.layers=['mid_block.*.attn1']",
                "trajectory.samples=1", "trajectory.training=0", f"controls.{control}")  # fmt: skip
    options = [word for setting in settings for word in ("--set", setting)]
    lines = CliRunner().invoke(cli.app, ["check", "tabletop", *options]).output.splitlines()
    assert lines[1] == "16 samples in 1 batch, 1 step, 1 layer, 1 cell"
    assert lines[2] == f"1 sample with images of 1 step{end}"


def test_check_and_run_note_labelers_of_the_embedded_world_for_another_model(
    complain, tiny_model, tmp_path, monkeypatch
):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"model": {"source": str(tiny_model)}, "labels": {"class": None}}))
    notes = [
        "note: labels.foreground, labels.depth, labels.shading: left out, so tabletop labels",
        "note: prompts.set: left out, so prompts are the captions of the embedded model",
    ]
    checked = CliRunner().invoke(cli.app, ["check", str(path)]).output
    monkeypatch.setenv("LDMPROBE_PREFECT_PORT", "many")  # the run ends after its notes
    code, _, begun = complain("run", str(path), "--store", str(tmp_path / "runs"))
    assert code == 1
    for note in notes:
        assert note in checked
        assert note in begun


def test_check_sizes_the_published_study_from_configs_alone():
    """The plan of 617 images with 16 layers and 15 steps has the sizes that we computed by hand."""
    result = CliRunner().invoke(cli.app, ["check", "paper"])
    # The command reports that the weights and prompts of this study are missing here.
    assert result.exit_code == 1
    told = " ".join(result.output.split())
    assert "617 samples in 155 batches, 15 steps, 16 layers, 240 cells" in told
    values = 5 * 4096 * 320 + 5 * 1024 * 640 + 5 * 256 * 1280 + 64 * 1280
    assert values == 11_550_720
    assert f"activations: {617 * 15 * values * 2 / 1e6:.1f} MB (346.5 MB an image)" in told
    assert round(617 * 15 * values * 2 / 1e9) == 214
    assert "memory of a worker: about" in told
    for missing in ("CompVis/stable-diffusion-v1-4", "labels.foreground is 'tracer'",
                    "labels.depth is 'midas'", "labels.shading is 'intrinsic'",
                    "train_split_prompts_seeds.csv"):  # fmt: skip
        assert (
            f"missing: {missing}" in told
            or f"missing: model.source '{missing}" in told
            or ("missing: prompts.files: " in told and missing in told)
        )


def test_run_refuses_a_study_whose_model_is_missing(complain, tmp_path):
    code, said, out = complain("run", "poster", "--store", str(tmp_path / "runs"))
    assert code == 1
    assert "CompVis/stable-diffusion-v1-4" in said
    assert "Prefect" not in out
    assert not (tmp_path / "runs").exists()


def test_check_refuses_a_file_that_describes_no_cluster(complain, tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml"):
        code, said, out = complain(
            "check", "tabletop", "--set", "execution.runner=dask",
            "--set", f"execution.cluster={path}",
        )  # fmt: skip
        assert (code, out) == (1, "")
        assert "execution.cluster is" in said


def test_console_prints_names_with_brackets_and_colons_as_they_are():
    """Rich would take them for markup and emoji, and fail at ``[/x]``."""
    name = "[/x] [red]runs[/red] :cat:"
    with cli.console.capture() as captured:
        cli.console.print(name)
        tables.print_rows([{"run": name}], cli.console)
    assert [line.strip() for line in captured.get().splitlines()] == [name, "run", name]


def test_command_in_a_folder_that_was_removed_is_one_sentence(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    command = "from pathlib import Path; Path.cwd().rmdir(); from flows import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "show", "x"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "ldmprobe: the current folder was removed. Fix: change to another folder"
    )
