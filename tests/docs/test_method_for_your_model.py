"""docs/method-for-your-model.md: its scripts against examples/, which other tests execute."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_examples_as_they_are(code_blocks):
    page = "docs/method-for-your-model.md"
    names = re.findall(r"\[examples/(\w+)\.py\]\(", (ROOT / page).read_text())
    blocks = code_blocks(page)
    assert len(names) == len(set(names)) == len(blocks) >= 5
    for name, block in zip(names, blocks, strict=True):
        assert block == (ROOT / f"examples/{name}.py").read_text()
