"""What the tests of the documentation share: a finished run, and the code blocks of a page."""

import re
from pathlib import Path

import pytest
from run_helpers import carry_out, conclude, small_study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def documented_run(tiny_model, tmp_path_factory):
    """A finished run of the tiny model with 12 samples."""
    study = small_study("read", tiny_model, 12)
    return conclude(carry_out(study, str(tmp_path_factory.mktemp("read"))))


@pytest.fixture(scope="session")
def code_blocks():
    """Function from a page's path below the root, and a language, to its code blocks."""

    def read(page: str, language: str = "python") -> list[str]:
        return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)

    return read
