"""Per-process cache of a run's metadata, by the run's URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zarr.core.buffer import Buffer

documents: dict[str, dict[str, Buffer]] = {}
members: dict[str, dict[str, tuple[str, ...]]] = {}
_facts: dict[str, dict[str, Any]] = {}
"""What is laid out once and never changes, by the run's URL: an object store is asked for it once
a process, not at every opening of an array (nine requests in ten).  The root's own attributes and
all data are always asked for.
"""


def invalidate_node(url: str, node: str) -> None:
    """Metadata of a node, and of all below it, was changed; its parent's members too."""
    cached, listed = documents.get(url, {}), members.get(url, {})
    for key in [key for key in cached if key.startswith(f"{node}/")]:
        del cached[key]
    for place in [p for p in listed if p == node or p.startswith(f"{node}/")]:
        del listed[place]
    listed.pop(node.rpartition("/")[0], None)


def invalidate_cache(url: str) -> None:
    """Drop all cached metadata of a URL, because a run is created there."""
    for known in (documents, members, _facts):
        known.pop(url, None)


def cached_fact(url: str, fact: str, find: Callable[[], Any]) -> Any:
    """What is laid out with a run and never changes, such as its layers: found once."""
    facts = _facts.setdefault(url, {})
    if fact not in facts:
        facts[fact] = find()
    return facts[fact]
