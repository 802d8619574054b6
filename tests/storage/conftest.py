"""Shared fixture: a prepared run."""

import pytest

from ldmprobe_core.pipeline.prepare import prepare_run


@pytest.fixture
def run(tiny_study, tmp_path):
    """Run of 10 samples, 3 steps and batches of 4, before its first unit."""
    return prepare_run(tiny_study(prompts={"samples": 10}), str(tmp_path / "runs"))
