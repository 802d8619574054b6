"""`python -O`: refused before any work, since Zarr needs its assert statements."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("ldmprobe", "ldmprobe_core", "flows", "tasks", "infra")


def test_show_without_assert_statements_is_one_sentence(tmp_path):
    process = subprocess.run(
        [sys.executable, "-O", "-m", "flows.cli", "show", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 1
    assert process.stdout == ""
    sentence = " ".join(process.stderr.split())
    assert sentence.startswith("ldmprobe: python -O: ")
    assert "Fix: start Python without -O" in sentence


def test_packages_have_no_assert_statements():
    """`python -O` would remove them, also from a package that imports this one."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Assert)], path
