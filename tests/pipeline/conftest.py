"""Shared fixture: a finished run of sums."""

import pytest
from run_helpers import carry_out, statistics_study


@pytest.fixture(scope="session")
def summed(tiny_model, tmp_path_factory):
    """Run that keeps sums of its training samples; tests only read it."""
    return carry_out(
        statistics_study(tiny_model, "statistics"), str(tmp_path_factory.mktemp("sums"))
    )
