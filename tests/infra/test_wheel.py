"""Tests of the built wheel, outside the source tree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.stack import free_ports

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_wheel_runs_a_study_outside_the_clone(tmp_path, prefect_home):
    def call(*words, **more):
        done = subprocess.run(words, capture_output=True, text=True, timeout=400, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python = sys.executable
    call(python, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    call(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel)
    environment = os.environ | {"PYTHONPATH": str(site), "PREFECT_HOME": str(prefect_home)}
    environment |= {"LDMPROBE_PREFECT_PORT": str(free_ports(1)[0])}
    environment.pop("PREFECT_API_URL", None)
    where = call(
        python, "-c", "import ldmprobe_core; print(ldmprobe_core.__file__)",
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert where.startswith(str(site))
    out = call(
        python, "-m", "flows.cli", "run", "--store", "out",
        "--set", "prompts.samples=8", "--set", "sampling.steps=2", "--set", "sampling.batch=4",
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    (page,) = tmp_path.glob("out/tabletop-*/report/index.html")
    assert f"Report: {page}" in out.splitlines()
