"""Tests that each command imports only the packages that it needs."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "diffusers", "transformers", "matplotlib", "plotly", "prefect", "distributed"}
SCRIPT = """
import json, os, sys
from flows.cli import main
sys.argv = {argv!r}
try:
    main()
except SystemExit:
    pass
sys.stdout.flush()
times = os.times()
print(json.dumps([sorted(sys.modules), times.user + times.system]), file=sys.stderr)
"""


def command(*words: str, encoding: str = "utf-8") -> tuple[str, set[str], float]:
    """Run a command, and return its output, the packages that it imported, and its CPU seconds."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(argv=["ldmprobe", *words])],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    modules, seconds = json.loads(done.stderr.decode().splitlines()[-1])
    return done.stdout.decode(), {name.partition(".")[0] for name in modules}, seconds


def test_help_imports_no_library_of_the_core():
    output, modules, seconds = command("--help")
    assert "classify" in output
    assert not modules & (HEAVY | {"numpy", "zarr", "xarray", "pandas", "pydantic"})
    assert seconds < 1.5  # it takes 0.4 s on an idle machine


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    from run_helpers import carry_out, small_study

    from ldmprobe_core.analysis.report.build import build_report

    run = carry_out(small_study("shown", tiny_model, 12), str(tmp_path_factory.mktemp("shown")))
    build_report(run, {})
    return run


def test_show_and_compare_read_runs_without_torch(finished):
    output, modules, _ = command("show", finished.url)
    assert "foreground" in output
    assert not modules & HEAVY
    output, modules, _ = command("compare", finished.url, finished.url)
    assert "last step" in output
    assert not modules & HEAVY


def test_show_prints_on_a_terminal_without_unicode(finished):
    plain, _, _ = command("show", finished.url)
    ascii_only, _, _ = command("show", finished.url, encoding="ascii")
    assert any(ord(character) > 127 for character in plain)
    assert ascii_only.isascii()
    assert ascii_only.split()[:3] == plain.split()[:3]
