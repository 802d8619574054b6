"""Tests of the check of the folder for temporary files."""

import tempfile
from pathlib import Path

import pytest

from flows.checks.environment import check_temporary_folder
from flows.commands.errors import write_log
from ldmprobe_core.errors import UserError


@pytest.fixture(autouse=True)
def _no_folder_named(monkeypatch):
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("folder", ["none", "file", "/proc"])
@pytest.mark.parametrize("name", ["TMPDIR", "TMP"])
def test_check_temporary_folder_refuses_one_that_is_not_writable(
    monkeypatch, tmp_path, name, folder
):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / folder)
    monkeypatch.setenv(name, path)
    with pytest.raises(UserError, match=rf"^{name}: .*\({path!r}: .*\)\. Fix: "):
        check_temporary_folder()


def test_check_temporary_folder_accepts_a_writable_one_or_none(monkeypatch, tmp_path):
    check_temporary_folder()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    check_temporary_folder()
    assert not list(tmp_path.iterdir())


def test_check_temporary_folder_and_log_without_any_writable_folder(monkeypatch):
    def no_folder():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    with pytest.raises(UserError, match=r"^TMPDIR: .* Fix: set it to a writable folder"):
        check_temporary_folder()
    monkeypatch.setenv("XDG_STATE_HOME", str(Path("/proc/none")))
    assert write_log("a traceback") is None
