"""Attention to a word of the prompt, as a foreground baseline without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldmprobe_core.errors import UserError


def word_positions(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """Find the positions of a word's tokens among the tokens of a prompt.

    Args:
        tokenizer: the pipeline's tokenizer of transformers, such as ``pipe.tokenizer``.
        prompt: prompt of an image.
        word: word or words of the prompt, as they stand in it.

    Returns:
        positions of the tokens of every occurrence, from 0, where special tokens count too.

    Raises:
        UserError: the word has no tokens, or they are not among those of the prompt.
    """
    tokens = tokenizer(prompt, truncation=True).input_ids
    part = tokenizer(word, add_special_tokens=False).input_ids
    starts = [i for i in range(len(tokens)) if part and tokens[i : i + len(part)] == part]
    if not starts:
        raise UserError(
            f"word: the tokens of {word!r:.40} are not among those of the prompt ({prompt!r:.80}). "
            "Fix: give a word exactly as in the prompt, from the part that is not truncated"
        )
    return sorted({i for start in starts for i in range(start, start + len(part))})


def word_map(attention: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """Average the attention maps of a word's tokens.

    The map of an object's noun is large on the object (Hertz et al. 2023, "Prompt-to-Prompt Image
    Editing with Cross-Attention Control"), so it ranks pixels by foreground.

    Args:
        attention: activations of a layer's capture point ``@words``, (..., y, x, token).
        positions: positions of the word's tokens, from `word_positions`.

    Returns:
        (..., y, x) float32, 0..1: the attention that each place pays to one token of the word.
    """
    return np.asarray(attention)[..., list(positions)].mean(-1, dtype=np.float32)
