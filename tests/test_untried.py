"""Tests that a test run ends with a line for each thing that it did not try."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).with_name("helpers")

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="needs a browser")
@pytest.mark.parametrize("n", [1, 2])
def test_page(n):
    assert False

def test_stack():
    pytest.skip("needs a database")

def test_that_runs():
    pass
"""

SLOW = """
import pytest

@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_study(n):
    assert False

def test_that_runs():
    pass
"""

HOOKS = "pytest_deselected, pytest_terminal_summary, pytest_testnodedown"


def lines_of(folder, *options):
    """Lines of a test run of a folder that begin as those that name what was not tried."""
    (folder / "conftest.py").write_text(f"from untried import {HOOKS}\n")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    base = f"--basetemp={folder}/base"  # not with other runs, whose old folders it would delete
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", base, *options, str(folder)]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, cwd=folder,
        # Other plugins take longer to import than these tests to run.
        env=os.environ | {"PYTHONPATH": str(HELPERS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if line.startswith("not tried: ")]


def test_a_run_ends_with_what_it_could_not_try(tmp_path):
    (tmp_path / "test_a.py").write_text(TESTS)
    (tmp_path / "test_b.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    lines = lines_of(tmp_path)
    assert {
        "not tried: 2 tests in test_a.py: needs a browser",
        "not tried: 1 test in test_a.py: needs a database",
    } < set(lines)
    assert len(lines) == 3
    assert any("1 test in test_b.py: " in line and "no_such_package" in line for line in lines)


@pytest.mark.parametrize(
    "processes", [[], ["-p", "xdist", "-n", "2"]], ids=["one process", "two processes"]
)
def test_a_run_ends_with_the_slow_tests_that_it_left_out(tmp_path, processes):
    (tmp_path / "tests/flows/checks").mkdir(parents=True)
    (tmp_path / "tests/flows/test_c.py").write_text(SLOW)
    (tmp_path / "tests/flows/checks/test_d.py").write_text(SLOW)
    (tmp_path / "tests/test_e.py").write_text(SLOW)
    where = "tests/flows (4), tests/test_e.py (2)"
    assert lines_of(tmp_path, "-m", "not slow", *processes) == [
        f"not tried: 6 slow tests in {where}: make test-slow runs them"
    ]


def test_a_run_that_leaves_nothing_out_names_nothing(tmp_path):
    (tmp_path / "test_f.py").write_text("def test_that_runs():\n    pass\n")
    assert lines_of(tmp_path, "-m", "not slow") == []
