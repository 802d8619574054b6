"""Per-process cache of a run's metadata, by the run's URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zarr.core.buffer import Buffer

documents: dict[str, dict[str, Buffer]] = {}
members: dict[str, dict[str, tuple[str, ...]]] = {}
_facts: dict[str, dict[str, Any]] = {}
"""Metadata that is constant after a run is created, by the run's URL.

It is requested once a process, which saves nine of ten requests to an object store.  The root's
attributes and all data are not cached.
"""


def invalidate_node(url: str, node: str) -> None:
    """Drop the cached metadata of a node and its descendants, and its parent's list of members."""
    cached, listed = documents.get(url, {}), members.get(url, {})
    for key in [key for key in cached if key.startswith(f"{node}/")]:
        del cached[key]
    for group in [g for g in listed if g == node or g.startswith(f"{node}/")]:
        del listed[group]
    listed.pop(node.rpartition("/")[0], None)


def invalidate_cache(url: str) -> None:
    """Drop all cached metadata of a URL, because a run is created there."""
    for known in (documents, members, _facts):
        known.pop(url, None)


def cached_fact(url: str, fact: str, find: Callable[[], Any]) -> Any:
    """Cached constant of a run, such as its layers; ``find`` is called once a process."""
    facts = _facts.setdefault(url, {})
    if fact not in facts:
        facts[fact] = find()
    return facts[fact]
