"""Creation of the stack's database, with a program in the place of PostgreSQL's initdb."""

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra import stack
from infra.services import PUBLIC_PORTS, Platform


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch):
    monkeypatch.setattr(stack, "postgres_program", lambda name: name)
    monkeypatch.setattr(stack, "unprivileged_user", lambda: None)


def platform_in(folder):
    return SimpleNamespace(data=folder, secrets={"database": "secret"}, services=list)


def test_a_database_whose_creation_was_interrupted_is_created_again(tmp_path, monkeypatch):
    """As initdb does, the program writes PG_VERSION first and the control file last."""
    interrupted = iter([True, False])

    def initdb(command, environment, user):
        folder = Path(command[command.index("-D") + 1])
        assert list(folder.iterdir()) == []
        (folder / "PG_VERSION").write_text("15")
        if next(interrupted):
            raise KeyboardInterrupt
        (folder / "pg_control").write_text("")

    monkeypatch.setattr(stack, "run_once", initdb)
    platform = platform_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stack.start(platform, None)
    for _ in range(2):  # a complete database is left as it is
        stack.start(platform, None)
    assert {path.name for path in tmp_path.iterdir()} == {"postgres"}
    assert {path.name for path in (tmp_path / "postgres").iterdir()} == {"PG_VERSION", "pg_control"}


def test_a_database_is_created_on_another_disk_through_a_symlink(tmp_path, monkeypatch):
    """A first creation is interrupted, and leaves a file and a folder."""
    disk, data = tmp_path / "disk", tmp_path / "data"
    disk.mkdir()
    data.mkdir()
    (data / "postgres").symlink_to(disk)
    interrupted = iter([True, False])

    def initdb(command, environment, user):
        assert list(disk.iterdir()) == []
        (disk / "PG_VERSION").write_text("15")
        (disk / "base").mkdir()
        if next(interrupted):
            raise stack.StackError("the disk is full")

    monkeypatch.setattr(stack, "run_once", initdb)
    with pytest.raises(stack.StackError, match="the disk is full"):
        stack.start(platform_in(data), None)
    for _ in range(2):
        stack.start(platform_in(data), None)
    assert (data / "postgres").is_symlink()
    assert {path.name for path in data.iterdir()} == {"postgres"}
    assert {path.name for path in disk.iterdir()} == {"PG_VERSION", "base"}


def test_files_that_are_no_database_are_left_alone(tmp_path):
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "lost+found").mkdir()
    with pytest.raises(stack.StackError, match=r"no database \(lost\+found\)\. Fix: empty it"):
        stack.start(platform_in(tmp_path), None)
    assert (tmp_path / "postgres" / "lost+found").is_dir()


def test_a_symlink_to_no_folder_is_one_sentence(tmp_path):
    (tmp_path / "postgres").symlink_to(tmp_path / "unplugged")
    with pytest.raises(stack.StackError, match=r"symlink to .*unplugged.*Fix: create it"):
        stack.start(platform_in(tmp_path), None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "{}/file"], r"--data: \S+/file cannot be used \(.*Fix: give a folder"),
        (["--data", "{}/damaged"], r"secrets\.json is damaged\. Fix: restore it"),
        (
            ["--data", "{}/a,b"],
            r"--data: SeaweedFS would take \S+/a,b as several folders.* Fix: give",
        ),
        (["--data", "{}/new", "--workers", "0"], r"--workers: at least 1 is needed \(0\)\. Fix"),
    ],
)
def test_unusable_options_are_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    (tmp_path / "file").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "secrets.json").write_text("")
    monkeypatch.setattr(sys, "argv", ["stack", *(word.format(tmp_path) for word in words)])
    monkeypatch.setattr(stack.signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit):
        stack.main()
    assert re.fullmatch(rf"stack: .*{sentence}.*\n", capsys.readouterr().err)


def test_a_disk_that_is_full_while_services_start_is_one_sentence(tmp_path, monkeypatch, capsys):
    def fill(platform, supervisor):
        raise OSError(28, "No space left on device", str(tmp_path / "logs" / "postgres.log"))

    monkeypatch.setattr(sys, "argv", ["stack", "--free-ports", "--data", str(tmp_path)])
    monkeypatch.setattr(stack.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(stack, "start", fill)
    with pytest.raises(SystemExit):
        stack.main()
    assert re.fullmatch(
        r"stack: --data: \S+ cannot be used \(.*No space left.*\)\. Fix: .* free space\n",
        capsys.readouterr().err,
    )


def test_commands_for_another_shell_hold_a_folder_with_a_space(tmp_path):
    platform = Platform(tmp_path / "my data", dict.fromkeys(PUBLIC_PORTS, 1), {}, workers=1)
    line = next(line for line in stack.welcome(platform).splitlines() if "activate" in line)
    assert shlex.split(line)[-1] == str(tmp_path / "my data" / "env")
