"""Attention to a word of the prompt."""

import numpy as np
import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.probing.readouts.words import word_map, word_positions
from ldmprobe_core.tabletop.tokenizer import new_tokenizer


@pytest.mark.parametrize(
    ("word", "positions"),
    [("car", [3]), ("a", [1, 5]), ("red car", [2, 3]), ("gray floor", [6, 7])],
)
def test_word_positions_count_the_token_before_the_prompt(word, positions):
    assert word_positions(new_tokenizer(), "a red car on a gray floor", word) == positions


@pytest.mark.parametrize("word", ["blue", "car red", ""])
def test_word_positions_refuses_words_that_are_not_in_the_prompt(word):
    with pytest.raises(UserError, match=r"word: the tokens of .* are not among those"):
        word_positions(new_tokenizer(), "a red car", word)


def test_word_map_is_the_mean_over_the_words_tokens():
    attention = np.arange(24, dtype=np.float16).reshape(1, 2, 3, 4)
    result = word_map(attention, [1, 3])
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [[[2, 6, 10], [14, 18, 22]]])
