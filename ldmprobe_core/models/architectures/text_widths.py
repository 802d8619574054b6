"""Text embedding widths that the denoiser expects and that the text encoders return."""

from __future__ import annotations

from typing import Any


def stated_widths(
    rows: list[tuple[str, Any, list[Any]]],
) -> list[tuple[str, int, int]]:
    """Return expected and actual embedding width per config key; omit keys with a missing width.

    Args:
        rows: key of the denoiser's config; its value, the width that the denoiser expects; and the
            widths of the text encoders whose embeddings the pipeline concatenates.
    """
    return [
        (key, needed, sum(given))
        for key, needed, given in rows
        if given and all(type(width) is int for width in (needed, *given))
    ]
