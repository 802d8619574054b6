"""Names of layers: stored, short, and of the module around them."""

import pytest

from ldmprobe_core.study.layers import matching_layers

BLOCK = "up_blocks.1.attentions.0"
FIRST, SECOND = (f"{BLOCK}.transformer_blocks.0.{name}" for name in ("attn1", "attn2"))
MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn1"
NAMES = [BLOCK, FIRST, SECOND, f"{FIRST}@query", MIDDLE]


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        (FIRST, [FIRST]),
        (f"{BLOCK}.attn1", [FIRST]),
        ("up*.attn?", [FIRST, SECOND]),
        (BLOCK, [BLOCK]),  # a layer itself, and not those inside it
        ("mid_block.attentions.0", [MIDDLE]),
        (f"{BLOCK}.attn1@query", [f"{FIRST}@query"]),
        ("up*@*", [f"{FIRST}@query"]),
        ("mid", []),
    ],
)
def test_matching_layers_by_name_short_name_or_module(glob, found):
    assert matching_layers(NAMES, glob) == found
