"""One finished run, which all intervention tests edit."""

import pytest
from run_helpers import carry_out, small_study

from ldmprobe_core.analysis.report.build import build_report


@pytest.fixture(scope="package")
def run(tiny_model, tmp_path_factory):
    run = carry_out(small_study("edits", tiny_model, 16), str(tmp_path_factory.mktemp("edits")))
    build_report(run, {"generate": 1.0})
    return run
