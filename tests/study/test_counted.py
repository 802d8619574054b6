"""Words for numbers of things in messages."""

import pytest

from ldmprobe_core.errors import counted, verb


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "step", "0 steps"),
        (1, "step", "1 step"),
        (-1, "step", "-1 step"),
        (2, "batch", "2 batches"),
        (1, "batch", "1 batch"),
        (3, "label mask", "3 label masks"),
    ],
)
def test_a_noun_agrees_with_its_number(number, noun, text):
    assert counted(number, noun) == text


@pytest.mark.parametrize(("number", "forms"), [(0, "are have"), (1, "is has"), (2, "are have")])
def test_a_verb_agrees_with_its_number(number, forms):
    assert f"{verb(number)} {verb(number, 'has', 'have')}" == forms
