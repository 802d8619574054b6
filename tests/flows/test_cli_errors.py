"""Tests of exit codes, of messages about failures, and of reports about missing requirements."""

import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from typer.testing import CliRunner

from flows import cli
from flows.commands.errors import EXIT_CODES, debug_requested, run_command, write_log
from ldmprobe_core.errors import RunError, UserError


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """Return the folder in which the command writes its log files."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("LDMPROBE_DEBUG", raising=False)
    return tmp_path / "state" / "ldmprobe"


@pytest.fixture
def call(capfd, monkeypatch):
    """Return a function that runs the command; it returns exit code, standard error and output."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["ldmprobe", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capfd.readouterr()
        return stop.value.code, captured.err, captured.out

    return run


def _raise(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("sampling.steps is 0"), 1),
        (RunError("3 units failed"), 3),
        (ValueError("shapes differ"), 3),
        (OSError(28, "No space left on device"), 3),
        (MemoryError(), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_run_command_exit_code_of_every_kind_of_failure(error, code, capfd):
    assert run_command(_raise(error)) == code
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 1


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--unknown"], 2), (["--help"], 0)])
def test_run_command_returns_the_exit_code_of_click(words, code):
    assert run_command(lambda: click.Command("x", callback=lambda: None).main(words)) == code


@pytest.mark.parametrize(
    "ending", ["sys.exit()", "raise SystemExit(0)", "exit(0)", "sys.exit('no\\n\\nno')"]
)
def test_run_command_fails_where_code_of_the_user_ends_the_program(
    ending, capfd, own_module, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO())  # exit() closes it
    own_module("ends_the_program", f"import sys\n\ndef metric():\n    {ending}\n")
    assert run_command(importlib.import_module("ends_the_program").metric) == 3
    said = capfd.readouterr().err
    assert said.startswith("ldmprobe: ends_the_program: its code ended the program before")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("object store: GET x - 503 (SlowDown)"), "object store: GET x - 503 (SlowDown)"),
        (PermissionError(13, "Permission denied", "/runs/tiny"), "/runs/tiny: this user may not"),
    ],
)
def test_run_command_names_a_store_that_refuses_a_request(state, capfd, error, words):
    assert run_command(_raise(error)) == 3
    said = capfd.readouterr().err
    assert said.startswith(f"ldmprobe: {words}")
    assert ". Fix: c" in said
    assert "unexpected" not in said
    assert not state.exists()


def test_run_command_unexpected_failure_is_one_sentence_and_a_log(state, capfd):
    assert run_command(_raise(KeyError("first line\nsecond line"))) == 3
    said = capfd.readouterr().err
    (log,) = state.iterdir()
    assert said.count("\n") == 1
    assert said.startswith("ldmprobe: unexpected KeyError: ")
    assert str(log) in said
    assert "Traceback (most recent call last)" in log.read_text()
    assert "first line" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_run_command_debug_prints_the_traceback(capfd):
    assert run_command(_raise(UserError("a mistake")), debug=True) == 1
    said = capfd.readouterr().err
    assert said.startswith("ldmprobe: a mistake\n")
    assert "Traceback (most recent call last)" in said


def test_write_log_takes_a_temporary_folder_where_the_state_folder_is_not_writable(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    log = write_log("text \udcff")  # a file name that is not UTF-8
    assert log.parent == tmp_path
    assert "text" in log.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    assert write_log("text") is None


def test_debug_requested_by_option_or_environment(monkeypatch):
    assert debug_requested(["run", "--debug"])
    assert not debug_requested(["run"])
    for value, requested in (("1", True), ("yes", True), ("0", False), ("", False)):
        monkeypatch.setenv("LDMPROBE_DEBUG", value)
        assert debug_requested([]) is requested


def test_main_accepts_debug_before_and_after_the_command(call, tmp_path):
    for words in (("--debug", "show", str(tmp_path)), ("show", str(tmp_path), "--debug")):
        code, said, _ = call(*words)
        assert code == 1
        assert "Traceback" in said
    assert "Traceback" not in call("show", str(tmp_path))[1]


def test_main_exit_code_of_wrong_usage(call):
    assert call("run", "--no-such-option")[0] == 2
    assert call("no-such-command")[0] == 2
    assert call("show")[0] == 2


def test_main_unexpected_failure_within_a_command(call, monkeypatch, state):
    def broken(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("ldmprobe_core.study.loading.load_study", broken)
    code, said, _ = call("check", "tabletop")
    assert code == 3
    assert "unexpected ZeroDivisionError: division by zero" in said
    assert "Traceback" not in said
    assert list(state.iterdir())


def test_help_names_the_exit_codes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    output = " ".join(CliRunner().invoke(cli.app, ["--help"]).output.split())
    assert EXIT_CODES in output
    assert "--debug" in output
    operations = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    section = operations.partition("## Exit codes")[2].partition("\n## ")[0]
    assert re.findall(r"(?m)^\| (\d+) \|", section) == ["0", "1", "2", "3", "130", "141", "143"]


@pytest.mark.parametrize(
    ("override", "content", "fault"),
    [
        ("prompts.files={path}", "caption,seed\na cat,1\n", "no column 'prompt'"),
        ("prompts.files={path}", None, "prompts.files"),
        ("prompts.files={path}", "prompt,seed\na cat,many\n", "many"),
        ("labels.depth.weights={path}", None, "labels.depth"),
    ],
)
def test_check_reports_a_fault_before_the_sizes_and_fails(call, tmp_path, override, content, fault):
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_text(content)
    extra = ("--set", "labels.depth.name=midas") if "weights" in override else ()
    code, said, out = call("check", "tabletop", *extra, "--set", override.format(path=path))
    assert code == 1
    assert fault in said
    assert "Traceback" not in said
    if "samples in" in out and "labels" not in override:
        assert "cannot be read here: the sizes are those of" in out


def test_check_lists_everything_that_is_missing_at_once(call):
    code, said, out = call("check", "paper")
    assert code == 1
    missing = [line for line in said.splitlines() if line.startswith("missing: ")]
    assert len(missing) == 5
    for word in ("model.source", "labels.foreground", "labels.depth", "labels.shading", "prompts"):
        assert sum(word in line for line in missing) >= 1
    assert "240 cells" in out


def test_run_lists_everything_that_is_missing_at_once(call, tmp_path):
    code, said, out = call("run", "paper", "--store", str(tmp_path / "runs"))
    assert code == 1
    assert said.count("ldmprobe: ") == 5
    assert out == ""
    assert not (tmp_path / "runs").exists()


def _run_with(arguments, stdout=None, stderr=None, closed=()):
    """Run the command in a process whose standard streams are those given, or closed."""

    def close():
        for number in closed:
            os.close(number)

    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        preexec_fn=close,
        text=True,
        timeout=300,
    )


def test_command_whose_output_is_not_read_ends_without_a_message():
    read, write = os.pipe()
    os.close(read)
    try:
        done = _run_with(["--help"], write, subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_command_on_a_full_disk_as_output_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = _run_with(["--help"], full, subprocess.PIPE)
    assert done.returncode == 3
    assert done.stderr.startswith("ldmprobe: standard output: it cannot be written to (No space")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2), (0, 1, 2)])
def test_command_without_standard_streams_keeps_its_exit_code(closed):
    assert _run_with(["--help"], closed=closed).returncode == 0
    assert _run_with(["show", "/nowhere"], closed=closed).returncode == 1


def test_command_keeps_its_exit_code_if_standard_error_is_full():
    with open("/dev/full", "w") as full:
        assert _run_with(["show", "/nowhere"], stderr=full).returncode == 1


@pytest.mark.parametrize("kind", [UserError, RunError, ConnectionError])
def test_run_command_prints_and_keeps_no_password_of_a_url(kind, state, capfd):
    """The messages of HTTP libraries quote the whole URL, also in a traceback's earlier errors."""

    def command():
        try:
            raise OSError("no answer from http://admin:secret@host:4200/api/health")
        except OSError as error:
            raise kind(f"{error}, nor from 'https://me:p@secret@b.example'") from error

    run_command(command, debug=True)
    said = capfd.readouterr().err
    logs = [path.read_text() for path in state.glob("*.log")]
    assert len(logs) == (kind is ConnectionError)
    for text in (said, *logs):
        assert "http://host:4200/api/health, nor from 'https://b.example'" in text
        assert "OSError: no answer from http://host:4200" in text
        assert "secret" not in text


def test_prepare_streams_reserves_the_numbers_of_closed_streams(tmp_path):
    path = tmp_path / "numbers"
    script = (
        "import os\n"
        "from flows.commands.errors import prepare_streams\n"
        "prepare_streams()\n"
        f"file = open({str(path)!r}, 'w')\n"
        "print('a stray line')\n"
        "os.write(1, b'a stray line')\n"
        "file.write(str(file.fileno()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: (os.close(1), os.close(2)),
        timeout=300,
    )
    assert done.returncode == 0
    assert path.read_text() == "3"
