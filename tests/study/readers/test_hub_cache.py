"""Hub ids: the same texts as huggingface_hub accepts, with an owner and a name."""

import pytest
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ldmprobe_core.study.readers.hub_cache import is_hub_id

TEXTS = [
    "Intel/dpt-large", "a/b", "a_b/c.d", "_a/b_", "CompVis/stable-diffusion-v1-4",
    "./models", "../models", "models/..", "a/b/c", "a", "a/", "/a", "-a/b", "a-/b", "a/b.", "a/b-",
    "a..b/c", "a--b/c", "a/b--c", "a/b.git", "ä/b", "a b/c", "a/b\n", "~/models", "s3://a/b",
    "a/" + "b" * 96, "a/" + "b" * 97,
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_is_hub_id_accepts_what_the_hub_does(text):
    try:
        validate_repo_id(text)
        is_valid = "/" in text
    except HFValidationError:
        is_valid = False
    if text == "ä/b":  # the hub has no such owner, though its client accepts letters of any script
        is_valid = False
    assert is_hub_id(text) == is_valid
