"""Tests of the commands with which the Makefile installs the environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def commands(tmp_path, *words):
    """Commands that `make env` would carry out, without carrying them out."""
    # What a make that started these tests hands down would change what this one prints.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", "env", f"VENV={tmp_path}/venv", *words],
        cwd=ROOT, env=clean, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [line.strip() for line in done.stdout.splitlines() if not line.startswith("#")]


def test_env_says_size_and_time_before_it_installs(tmp_path):
    first, second, *rest = commands(tmp_path)
    assert "8 GB" in first
    assert "3 to 6 minutes" in second
    assert not any("--index-url" in line for line in rest)
    assert sum("pip install" in line for line in rest) == 4
    assert "--upgrade pip" in next(line for line in rest if "pip install" in line)


def test_env_takes_torch_alone_from_the_index_that_the_user_names(tmp_path):
    lines = commands(tmp_path, "TORCH_INDEX=https://index.invalid/cpu")
    assert "4 GB with torch for CPUs" in lines[0]
    (of_index,) = [line for line in lines if "--index-url" in line]
    assert '--no-deps --index-url "https://index.invalid/cpu" $(grep' in of_index
    usual = [line for line in lines if "pip install" in line and line != of_index]
    assert lines.index(of_index) < lines.index(usual[1])  # the first is pip's own
    assert "constraints.txt" in usual[1]


def test_env_pins_torch_and_torchvision_in_the_index_command(tmp_path):
    words = re.search(r"\$\((grep .*)\)", "\n".join(commands(tmp_path, "TORCH_INDEX=x"))).group(1)
    done = subprocess.run(["sh", "-c", words], cwd=ROOT, capture_output=True, text=True)
    assert [line.partition("==")[0] for line in done.stdout.split()] == ["torch", "torchvision"]


def watched(folder, *command, terminal=False):
    """Run a command under `infra/watched.sh`, with or without a terminal."""
    words = ["sh", str(ROOT / "infra/watched.sh"), str(folder), *command]
    if terminal:
        words = ["script", "-qec", " ".join(words), "/dev/null"]
    return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_watched_command_keeps_its_output_and_its_exit_status(tmp_path):
    (tmp_path / "fail").write_text("echo written; echo complaint >&2; exit 7")
    done = watched(tmp_path, "sh", tmp_path / "fail")
    assert (done.returncode, done.stdout, done.stderr) == (7, "written\n", "complaint\n")


@pytest.mark.skipif(shutil.which("script") is None, reason="script is not installed")
def test_watched_command_shows_the_size_of_the_folder_while_it_runs(tmp_path):
    with open(tmp_path / "data", "wb") as file:
        file.write(os.urandom(120_000_000))
    # The command ends once its line has been renewed for the first time.
    done = watched(tmp_path, "sleep", "4", terminal=True)
    assert f"{tmp_path}: 0.1 GB after 2 s" in done.stdout
    assert done.stdout.rstrip().endswith("\x1b[K")  # the line is removed at the end
