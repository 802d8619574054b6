"""A finished run, and the copy of it that all intervention tests edit."""

import shutil
from pathlib import Path

import pytest
from run_helpers import carry_out, conclude, small_study

from ldmprobe_core.storage.run import Run


@pytest.fixture(scope="package")
def unedited_run(tiny_model, tmp_path_factory):
    """A finished run without interventions; tests only read it."""
    study = small_study("edits", tiny_model, 16)
    return conclude(carry_out(study, str(tmp_path_factory.mktemp("unedited"))))


@pytest.fixture(scope="package")
def run(unedited_run, tmp_path_factory):
    """A copy of the run with the interventions of all tests."""
    folder = tmp_path_factory.mktemp("edits") / Path(unedited_run.url).name
    shutil.copytree(unedited_run.url, folder)
    return Run(str(folder))
