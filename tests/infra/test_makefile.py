"""Tests of the commands with which the Makefile installs the environment."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def commands(tmp_path, *words, target="env"):
    """Commands that a target would carry out, without carrying them out."""
    # What a make that started these tests hands down would change what this one prints.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", target, f"VENV={tmp_path}/venv", *words],
        cwd=ROOT, env=clean, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [line.strip() for line in done.stdout.splitlines() if not line.startswith("#")]


def test_env_says_size_and_time_before_it_installs(tmp_path):
    first, second, *rest = commands(tmp_path)
    assert "8 GB" in first
    assert "3 to 6 minutes" in second
    assert not any("--index-url" in line for line in rest)
    assert sum("pip install" in line for line in rest) == 3


def make_env(tmp_path, python):
    """Carry out `make env` with a script in the place of Python; no package is installed."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{python}\n")
    script.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "env", f"VENV={tmp_path}/venv", f"PYTHON={script}", "TORCH_INDEX="],
        cwd=ROOT, env=clean, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_env_names_a_python_that_is_too_old_before_it_makes_anything(tmp_path):
    done = make_env(tmp_path, "exit 1")
    assert done.returncode == 2
    assert re.search(r"^PYTHON: Python 3\.11 or later is needed \(.*\)\. Fix: ", done.stderr, re.M)
    assert not (tmp_path / "venv").exists()


def test_env_completes_an_environment_whose_creation_was_interrupted(tmp_path):
    """Python is in it, and pip, which comes last, is not."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").touch(0o755)
    pip = folder / "pip"
    done = make_env(tmp_path, f"[ $1 = -c ] || {{ echo 'exit 0' > {pip}; chmod +x {pip}; }}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "venv" / "ready").exists()


def test_env_takes_torch_alone_from_the_index_that_the_user_names(tmp_path):
    lines = commands(tmp_path, "TORCH_INDEX=https://index.invalid/cpu")
    assert "4 GB with torch for CPUs" in lines[0]
    (of_index,) = [line for line in lines if "--index-url" in line]
    assert '--no-deps --index-url "https://index.invalid/cpu" $(grep' in of_index
    usual = [line for line in lines if "pip install" in line and line != of_index]
    assert lines.index(of_index) < lines.index(usual[0])
    assert "constraints.txt" in usual[0]


def test_env_pins_torch_and_torchvision_in_the_index_command(tmp_path):
    words = re.search(r"\$\((grep .*)\)", "\n".join(commands(tmp_path, "TORCH_INDEX=x"))).group(1)
    done = subprocess.run(["sh", "-c", words], cwd=ROOT, capture_output=True, text=True)
    assert [line.partition("==")[0] for line in done.stdout.split()] == ["torch", "torchvision"]


def test_two_targets_run_every_test_once_and_continuous_integration_runs_both(tmp_path):
    def pytest_of(target):
        (line,) = [line for line in commands(tmp_path, target=target) if "-m pytest" in line]
        return line

    assert pytest_of("test") == pytest_of("test-slow").replace("-m slow", '-m "not slow"')
    assert "tests" not in pytest_of("test-slow").partition("-m pytest")[2]  # no folder, so all
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make test", "make test-slow"]


def test_make_test_names_the_containers_that_it_did_not_try(tmp_path):
    assert commands(tmp_path, target="test")[-1].startswith('echo "not tried: the containers')


def test_pinned_versions_support_the_oldest_python_that_the_package_allows():
    """For a version that does not, pip goes through the combinations of all others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = f"{project['requires-python'].removeprefix('>=')}.0"
    pins = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    checked = 0
    for name, version in pins:
        with suppress(PackageNotFoundError):  # a pin for another platform
            metadata = distribution(name).metadata
            if metadata["Version"] != version:
                continue  # an environment that is older than the pins
            needs = SpecifierSet(metadata.get("Requires-Python") or "")
            assert needs.contains(oldest), f"{name} {version} needs Python {needs}"
            checked += 1
    assert checked > 150


def watched(folder, *command, log=None):
    """Run a command under `infra/watched.sh`, on a terminal if there is a ``log`` of its output."""
    words = ["sh", str(ROOT / "infra/watched.sh"), *map(str, (folder, *command))]
    if log:
        words = ["script", "-qefc", " ".join(words), str(log)]
    return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_watched_command_keeps_its_output_and_its_exit_status(tmp_path):
    (tmp_path / "fail").write_text("echo written; echo complaint >&2; exit 7")
    done = watched(tmp_path, "sh", tmp_path / "fail")
    assert (done.returncode, done.stdout, done.stderr) == (7, "written\n", "complaint\n")


@pytest.mark.skipif(shutil.which("script") is None, reason="script is not installed")
def test_watched_command_shows_the_size_of_the_folder_while_it_runs(tmp_path):
    with open(tmp_path / "data", "wb") as file:
        file.write(os.urandom(120_000_000))
    (tmp_path / "wait").write_text('until grep -q "GB after" "$0.log"; do sleep 0.1; done')
    done = watched(tmp_path, "sh", tmp_path / "wait", log=tmp_path / "wait.log")
    assert re.search(rf"{tmp_path}: 0\.1 GB after \d+ s", done.stdout)
    assert done.stdout.rstrip().endswith("\x1b[K")  # the line is removed at the end


def test_watched_command_ends_with_all_that_it_started_on_ctrl_c(tmp_path):
    (tmp_path / "start").write_text("echo started; sleep 600; echo not reached")
    words = ["sh", str(ROOT / "infra/watched.sh"), str(tmp_path), "sh", str(tmp_path / "start")]
    # Every process holds the pipe open, so its end tells that all have ended.
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stdout.readline() == "started\n"
        deadline = time.monotonic() + 60
        while process.poll() is None:
            assert time.monotonic() < deadline
            os.killpg(process.pid, signal.SIGINT)  # once more if the shell was not ready for it
            time.sleep(0.1)
        process.communicate(timeout=60)
    assert process.returncode == 130
