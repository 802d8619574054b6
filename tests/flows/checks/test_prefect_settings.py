"""Tests that each wrong Prefect setting gives one clear message before any work starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.checks.prefect_settings import check_prefect_settings, without_password
from ldmprobe_core.errors import UserError

ROOT = Path(__file__).parents[3]


def _checked(home, variables):
    """Call the check in a process of its own, because Prefect reads its settings once."""
    script = (
        "import sys\n"
        "from flows.commands.errors import run_command\n"
        "from flows.checks.prefect_settings import check_prefect_settings\n"
        "sys.exit(run_command(check_prefect_settings))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)} | variables,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )


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
        ("PREFECT_CLIENT_MAX_RETRIES", "many", "PREFECT_CLIENT_MAX_RETRIES is 'many'"),
        ("PREFECT_LOGGING_LEVEL", "LOUD", "PREFECT_LOGGING_LEVEL is 'LOUD'"),
    ],
)
def test_check_prefect_settings_names_a_value_that_is_wrong(tmp_path, name, value, words):
    done = _checked(tmp_path, {name: value})
    assert done.returncode == 1, done.stderr
    assert words in done.stderr
    assert "Fix: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ('active = "gone"\n[profiles.mine]\n', "there is no profile of this name ('gone')"),
        ('active = "mine"\n[profiles]\nmine = 3\n', "Prefect's settings cannot be read"),
        (
            'active = "mine"\n[profiles.mine]\nPREFECT_LOGGING_LEVEL = "LOUD"\n',
            "Prefect's setting 'level' (LoggingSettings) is 'LOUD'",
        ),
    ],
)
def test_check_prefect_settings_refuses_a_damaged_profile(tmp_path, profiles, words):
    (tmp_path / "profiles.toml").write_text(profiles)
    done = _checked(tmp_path, {})
    assert done.returncode == 1, done.stderr
    assert words in done.stderr
    assert "Fix: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_check_prefect_settings_notes_a_setting_that_prefect_ignores(tmp_path):
    (tmp_path / "profiles.toml").write_text('active = "a"\n[profiles.a]\nPREFECT_PORT = "1"\n')
    done = _checked(tmp_path, {})
    assert done.returncode == 0, done.stderr
    assert done.stderr == "note: Prefect's settings: Setting 'PREFECT_PORT' is not recognized\n"


@pytest.mark.parametrize("name", ["profiles.toml", "prefect.toml"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_check_prefect_settings_refuses_a_file_that_is_none(monkeypatch, tmp_path, name, make):
    make(tmp_path / name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^Prefect's settings: .*regular file .* Fix: "):
        check_prefect_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PREFECT_HOME", "~no-such-user/prefect"),
        ("PREFECT_PROFILES_PATH", "/nowhere/profiles.toml"),
        ("PREFECT_PROFILE", "no-such-profile"),
        ("PREFECT_PROFILE", ""),
    ],
)
def test_check_prefect_settings_refuses_a_name_of_nothing(monkeypatch, tmp_path, name, value):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^{name}: .*\({value!r}\)\. Fix: "):
        check_prefect_settings()


@pytest.mark.parametrize("key", ["cl\xe9", "pnu_1\n"])
def test_check_prefect_settings_refuses_a_key_without_showing_it(monkeypatch, tmp_path, key):
    from prefect.settings import PREFECT_API_KEY, temporary_settings

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with (
        temporary_settings({PREFECT_API_KEY: key}),
        pytest.raises(UserError, match=r"^PREFECT_API_KEY: .* Fix: ") as refusal,
    ):
        check_prefect_settings()
    assert key.strip() not in str(refusal.value)


def test_without_password_removes_it_from_a_url():
    assert without_password("http://me:word@host:1/api") == "http://host:1/api"
    assert without_password("http://host:1/api") == "http://host:1/api"
    assert without_password("no url") == "no url"
