"""Widths of text embeddings: expected by the denoiser, and returned by the text encoders."""

from __future__ import annotations

from typing import Any


def stated_widths(
    rows: list[tuple[str, Any, list[Any]]],
) -> list[tuple[str, int, int]]:
    """Sum the text encoders' widths for each config key; leave out keys with a missing width.

    Args:
        rows: key of the denoiser's config; its value, the width that the denoiser expects; and the
            widths of the text encoders whose embeddings the pipeline concatenates.
    """
    return [
        (key, needed, sum(given))
        for key, needed, given in rows
        if given and all(type(width) is int for width in (needed, *given))
    ]
