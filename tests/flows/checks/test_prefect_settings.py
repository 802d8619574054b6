"""Tests that each wrong Prefect setting gives one clear message before any work starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.checks.prefect_settings import check_prefect_settings, without_password
from ldmprobe_core.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/no-such-folder"])
def test_check_prefect_settings_refuses_a_home_that_is_not_writable(monkeypatch, tmp_path, folder):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / folder))
    with pytest.raises(UserError, match=r"^PREFECT_HOME is .*cannot be written to.* Fix: "):
        check_prefect_settings()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PREFECT_API_URL", "localhost:4200/api", "PREFECT_API_URL is 'localhost:4200/api'"),
        ("PREFECT_API_URL", "http://:4200", "PREFECT_API_URL is 'http://:4200'"),
        ("PREFECT_API_URL", "ftp://host/api", "PREFECT_API_URL is 'ftp://host/api'"),
        ("PREFECT_API_URL", "http://host:many/api", "PREFECT_API_URL is 'http://host:many/api'"),
        ("PREFECT_CLIENT_MAX_RETRIES", "many", "max_retries' is 'many'"),
    ],
)
def test_check_prefect_settings_names_a_value_that_is_wrong(tmp_path, name, value, words):
    script = (
        "import sys\n"
        "from flows.cli_errors import run_command\n"
        "from flows.checks.prefect_settings import check_prefect_settings\n"
        "sys.exit(run_command(check_prefect_settings))\n"
    )
    variables = {"PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), name: value}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert words in done.stderr
    assert "Fix: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_password_removes_it_from_a_url():
    assert without_password("http://me:word@host:1/api") == "http://host:1/api"
    assert without_password("http://host:1/api") == "http://host:1/api"
    assert without_password("no url") == "no url"
