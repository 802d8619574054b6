"""Test that a test run ends with a line for each thing that the machine could not try."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_a_run_ends_with_what_it_could_not_try(tmp_path):
    (tmp_path / "conftest.py").write_text("from untried import pytest_terminal_summary\n")
    (tmp_path / "test_a.py").write_text(TESTS)
    (tmp_path / "test_b.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(HELPERS)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("not tried: ")]
    assert {
        "not tried: 2 tests in test_a.py: needs a browser",
        "not tried: 1 test in test_a.py: needs a database",
    } < set(lines)
    assert len(lines) == 3
    assert any("1 test in test_b.py: " in line and "no_such_package" in line for line in lines)
