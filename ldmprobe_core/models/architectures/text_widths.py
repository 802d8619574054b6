"""Widths of text embeddings, by the configs of a denoiser and of its text encoders."""

from __future__ import annotations

from typing import Any


def stated_widths(
    rows: list[tuple[str, Any, list[Any]]],
) -> list[tuple[str, int, int]]:
    """Sum up the widths of several encoders, and leave out rows in which a number is missing.

    Args:
        rows: key of the denoiser's config, its value, and the widths that the encoders' configs
            state, which the pipeline concatenates.
    """
    return [
        (key, needed, sum(given))
        for key, needed, given in rows
        if given and all(type(width) is int for width in (needed, *given))
    ]
