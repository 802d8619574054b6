"""Tokenizer of captions."""

from ldmprobe_core.study.prompt_sets import (
    CATEGORIES,
    FLOOR_COLORS,
    OBJECT_COLORS,
    WALL_COLORS,
    caption,
)
from ldmprobe_core.tabletop.scenes import caption_words
from ldmprobe_core.tabletop.tokenizer import CAPTION_LENGTH, new_tokenizer


def test_new_tokenizer_gives_every_caption_word_one_token():
    tokenizer = new_tokenizer()
    unknown = []
    for word in caption_words():
        ids = tokenizer(word).input_ids
        unknown += [word] if len(ids) != 3 else []
    assert unknown == []
    assert len({tokenizer(word).input_ids[1] for word in caption_words()}) == len(caption_words())
    for category in CATEGORIES:
        for color in OBJECT_COLORS:
            for wall in (None, *WALL_COLORS):
                for floor in FLOOR_COLORS:
                    words = caption(category, color, floor, wall)
                    assert len(tokenizer(words).input_ids) <= CAPTION_LENGTH
    odd = tokenizer("Zürich, 東京 \x00").input_ids
    assert tokenizer.unk_token_id not in odd[1:-1]
