"""Shared fixtures: a prepared run, and a finished one."""

import pytest
from run_helpers import carry_out, conclude, small_study

from ldmprobe_core.pipeline.prepare import prepare_run


@pytest.fixture
def run(tiny_study, tmp_path):
    """Run of 10 samples, 3 steps and batches of 4, before its first unit."""
    return prepare_run(tiny_study(prompts={"samples": 10}), str(tmp_path / "runs"))


@pytest.fixture(scope="session")
def whole(tiny_model, tmp_path_factory):
    """A finished run of 10 samples, without a report; tests only read it."""
    study = small_study("whole", tiny_model, 10)
    return conclude(carry_out(study, str(tmp_path_factory.mktemp("whole"))))
