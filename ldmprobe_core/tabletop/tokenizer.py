"""CLIP tokenizer with one token for each word of the tabletop captions.

Other text is tokenized byte by byte, as with CLIP's own vocabulary.
"""

from __future__ import annotations

from itertools import pairwise

from transformers import CLIPTokenizer

from ldmprobe_core.tabletop.scenes import caption_words

CAPTION_LENGTH = 24
"""Number of tokens per caption, after padding or truncation, including the begin and end tokens."""

_END = "</w>"


def new_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE tokenizer with only the merges that make each caption word one token."""
    merges: list[tuple[str, str]] = []
    for word in caption_words():
        merges += _missing_merges(word, merges)
    letters = _byte_letters()
    vocabulary = letters + [letter + _END for letter in letters]
    vocabulary += list(dict.fromkeys(left + right for left, right in merges))
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=CAPTION_LENGTH,
    )


def _missing_merges(word: str, merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Merges to append to ``merges`` so that byte-pair encoding makes ``word`` one token."""
    rank = {pair: i for i, pair in enumerate(merges)}
    pieces = [*word[:-1], word[-1] + _END]
    added: list[tuple[str, str]] = []
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        known = [pair for pair in pairs if pair in rank]
        pair = min(known, key=rank.__getitem__) if known else pairs[0]
        if not known:
            rank[pair] = len(rank)
            added.append(pair)
        pieces = _merge(pieces, pair)
    return added


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join two consecutive pieces wherever they are the given pair."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def _byte_letters() -> list[str]:
    """Printable character that represents each byte in byte-level BPE (as in GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(hidden))]
