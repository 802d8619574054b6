"""Check of a study's size against the limit of Prefect's parameters."""

import pytest

from flows.checks.study_size import check_study_size
from ldmprobe_core.errors import UserError
from ldmprobe_core.study.loading import parse_study


def study_of(character):
    """Study of 700 prompts with 100 times a character each."""
    items = [f"{number} {character * 100}" for number in range(700)]
    return parse_study({"prompts": {"items": items}})


def test_study_of_prompts_beyond_ascii_is_counted_as_prefect_counts_it():
    """70,000 letters are 70 kB in ASCII; of two bytes in UTF-8, each is an escape of six bytes."""
    check_study_size(study_of("b"))
    with pytest.raises(UserError, match=r"^prompts\.items makes the study 42\d kB, "):
        check_study_size(study_of("\u0431"))
